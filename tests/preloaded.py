"""What `tests.started` loads before it forks."""

import hgkd_edge.cli
import hgkd_edge.distillation.distill
import hgkd_edge.distillation.pretrain
import hgkd_edge.export
import hgkd_edge.finetune  # noqa: F401
