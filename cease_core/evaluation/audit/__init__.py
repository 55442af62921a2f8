"""The audit: models × attacks × ε × cases, as one table that survives a kill."""

from cease_core.evaluation.audit.executors import Cluster, Executor, Serial
from cease_core.evaluation.audit.plan import Settings, Trial, tier
from cease_core.evaluation.audit.run import AuditEvent, AuditFinished, JobDone, Planned, audit
from cease_core.evaluation.audit.store import Audit, load_audit
from cease_core.evaluation.audit.victims import Victim

__all__ = [
    "Audit",
    "AuditEvent",
    "AuditFinished",
    "Cluster",
    "Executor",
    "JobDone",
    "Planned",
    "Serial",
    "Settings",
    "Trial",
    "Victim",
    "audit",
    "load_audit",
    "tier",
]
