//! What a forecast is asked.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shadow_protocol::spec::{ReplayMode, Strategy};

use crate::scenario::WorldFault;

/// The load, the checkpoint, and how to move it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Messages per second, of all publishers together.
    pub rate: u64,
    /// Time that the application needs per message, in microseconds.
    pub service_micros: u64,
    /// Messages that wait when the migration begins.
    pub backlog: u32,
    /// Publishers; at least 1.
    pub publishers: u8,
    /// Size of the checkpoint in megabytes.
    pub checkpoint_mb: u64,
    /// Of the network to the registry and from it, in bytes per second.
    pub bandwidth: u64,
    /// Strategy.
    pub strategy: Strategy,
    /// Mode; absent: chosen as the operator chooses it.
    pub replay_mode: Option<ReplayMode>,
    /// The application returns to the queue it was told to consume when it has lost its connection.
    pub remembers_queue: bool,
    /// Seed of what is left to chance.
    pub seed: u64,
    /// What goes wrong.
    pub fault: Option<FaultAt>,
}

/// A fault, and the step at whose beginning it happens for the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultAt {
    /// What goes wrong.
    pub kind: WorldFault,
    /// A phase, a step, or both: `checkpointing`, `cut-b`, `checkpointing/cut-b`.
    pub step: String,
}

/// The faults by the names that users know, the usual one first.
pub const FAULTS: [(&str, WorldFault); 22] = [
    ("operator-crash", WorldFault::OperatorCrashes),
    ("source-crash", WorldFault::SourceRestarts),
    ("source-gone", WorldFault::SourceGone),
    ("target-crash", WorldFault::TargetEnds),
    ("target-gone", WorldFault::TargetGone),
    ("broker-restart", WorldFault::BrokerRestarts),
    ("connections-cut", WorldFault::ApplicationsCutOff),
    ("source-node-gone", WorldFault::SourceNodeGone),
    ("target-node-gone", WorldFault::TargetNodeGone),
    ("archive-truncated", WorldFault::ArchiveTruncated),
    ("push-fails", WorldFault::PushFails),
    ("restore-fails", WorldFault::RestoreFails),
    ("admission-silent", WorldFault::AdmissionSilent),
    ("late-deliveries", WorldFault::Flood),
    ("second-consumer", WorldFault::Intruder),
    ("alarm", WorldFault::Alarm),
    ("session-lost", WorldFault::SessionLost),
    ("second-migration", WorldFault::SecondMigration),
    ("queues-blind", WorldFault::QueuesBlind),
    ("transaction", WorldFault::Transaction),
    ("abort", WorldFault::Abort),
    ("delete", WorldFault::Delete),
];

impl FaultAt {
    /// It happens at the step of this name.
    pub(super) fn is_at(&self, name: &str) -> bool {
        let parts = || name.split('/');
        name == self.step || parts().any(|part| part == self.step)
    }
}

impl FromStr for FaultAt {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, step) = text.split_once('@').unwrap_or((FAULTS[0].0, text));
        let found = FAULTS.iter().find(|(name, _)| *name == kind);
        let Some(&(_, kind)) = found else {
            let names: Vec<&str> = FAULTS.iter().map(|(name, _)| *name).collect();
            return Err(format!("no fault is called {kind:?}; there are {}", names.join(", ")));
        };
        if step.is_empty() {
            return Err("a step is missing: write KIND@STEP, or STEP".to_owned());
        }
        Ok(Self { kind, step: step.to_lowercase() })
    }
}

impl fmt::Display for FaultAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = FAULTS.iter().find(|(_, kind)| *kind == self.kind).map(|(name, _)| *name);
        write!(f, "{}@{}", name.unwrap_or_default(), self.step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::WORLD_FAULTS;

    #[test]
    fn every_fault_of_the_world_has_a_name() {
        for kind in WORLD_FAULTS {
            let fault = FaultAt { kind, step: "cut-b".into() };
            assert_eq!(fault.to_string().parse(), Ok(fault));
        }
        let crash: FaultAt = "freeze".parse().unwrap();
        assert_eq!(crash.to_string(), "operator-crash@freeze");
        for wrong in ["fire@freeze", "abort@"] {
            assert!(wrong.parse::<FaultAt>().is_err());
        }
    }

    #[test]
    fn a_step_is_found_by_its_phase_too() {
        for (asked, found) in [
            ("cut-b", true),
            ("checkpointing", true),
            ("checkpointing/cut-b", true),
            ("cut", false),
        ] {
            let fault = FaultAt { kind: WorldFault::Abort, step: asked.into() };
            assert_eq!(fault.is_at("checkpointing/cut-b"), found, "{asked}");
        }
    }
}
