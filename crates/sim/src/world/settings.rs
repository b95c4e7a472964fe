//! What the user asks for.

use shadow_protocol::spec::{IdentitySwap, ReplayMode, Spec, Strategy, Transfer};

use super::{EXCHANGE, NODES, QUEUE, SOURCE};
use crate::scenario::{OwnerKind, Scenario};
use crate::tempo::Tempo;

pub(super) fn spec(scenario: &Scenario, tempo: &Tempo) -> Spec {
    Spec {
        uid: "5e3d0000-0000".to_owned(),
        source_pod: SOURCE.to_owned(),
        container: None,
        target_node: Some(NODES[1].to_owned()),
        repository: Some("registry.example/checkpoints".to_owned()),
        strategy: match (scenario.owner, scenario.swap) {
            (OwnerKind::Bare | OwnerKind::Deployment, _) => None,
            (OwnerKind::StatefulSet, IdentitySwap::None) => Some(Strategy::Sequential),
            (OwnerKind::StatefulSet | OwnerKind::Shrinking, _) => Some(Strategy::ShadowPod),
        },
        transfer: Transfer::Registry,
        replay_mode: scenario.mode.filter(|mode| *mode != ReplayMode::Alone),
        cutoff_ms: tempo.cutoff,
        identity_swap: scenario.swap,
        // Both ways, whatever else happens.
        pin: scenario.seed.is_multiple_of(3).then_some(false),
        queue: (!scenario.alone()).then(|| QUEUE.to_owned()),
        exchange: EXCHANGE.to_owned(),
        abort: false,
        deleted: false,
    }
}
