//! What the user asks for, and the operator's settings.

use shadow_protocol::spec::{Deadlines, IdentitySwap, Settings, Spec, Strategy, Transfer};

use super::{EXCHANGE, NODES, QUEUE, SOURCE};
use crate::scenario::{OwnerKind, Scenario};

pub(super) fn spec(scenario: &Scenario) -> Spec {
    Spec {
        uid: "5e3d0000-0000".to_owned(),
        source_pod: SOURCE.to_owned(),
        container: None,
        target_node: Some(NODES[1].to_owned()),
        repository: Some("registry.example/checkpoints".to_owned()),
        strategy: (scenario.owner == OwnerKind::StatefulSet).then_some(Strategy::Sequential),
        transfer: Transfer::Registry,
        replay_mode: scenario.mode,
        cutoff_ms: 400,
        identity_swap: IdentitySwap::None,
        pin: false,
        queue: Some(QUEUE.to_owned()),
        exchange: EXCHANGE.to_owned(),
        abort: false,
        deleted: false,
    }
}

/// As the operator's, but shorter: nothing is learned from waiting.
pub(super) fn settings() -> Settings {
    Settings {
        pause_budget_ms: 50,
        settle_ms: 300,
        linger_ms: 900,
        ebb_ms: 30,
        overlap_ms: 30,
        park_pause_ms: 500,
        statistics_ms: 100,
        admission: true,
        deadlines: Deadlines {
            preflight: 3_000,
            broker: 3_000,
            drain: 8_000,
            obey: 2_000,
            proof: 3_000,
            checkpoint: 2_000,
            transfer: 3_000,
            restore: 3_000,
            heir: 1_500,
            progress: 1_000,
            switch: 3_000,
        },
    }
}
