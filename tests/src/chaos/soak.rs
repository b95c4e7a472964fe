//! Many migrations in a row, each another one, with a fault in a third of them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::fault::{End, Fault};
use super::stage::Kind;
use super::{Row, Trial};

/// So many of the same application follow each other: another one takes its time to come.
const IN_A_ROW: u64 = 10;

/// Which migrations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Soak {
    /// All of it follows from this.
    pub seed: u64,
    /// How many.
    pub migrations: u64,
}

/// What a soak has come to so far.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spell {
    /// Which it is.
    pub soak: Soak,
    /// By the number of the migration.
    pub rows: Vec<Row>,
    /// Memory of the operator that leads, in bytes: after ten migrations.
    pub memory_after_ten: Option<u64>,
    /// After the last one.
    pub memory_in_the_end: Option<u64>,
}

impl Soak {
    /// The `nth` migration. Nothing in it ends the operator: its memory is compared.
    pub fn trial(&self, nth: u64) -> Trial {
        let mut of_row = fastrand::Rng::with_seed(self.seed ^ (nth / IN_A_ROW));
        let kind = [Kind::Deployment, Kind::Bare, Kind::StatefulSet][of_row.usize(..3)];
        let mut rng = fastrand::Rng::with_seed(self.seed.wrapping_add(1 + nth));
        let mut asked = json!({});
        match kind {
            Kind::StatefulSet => {
                let swap = rng.usize(..3);
                let strategy = if swap == 2 { "Sequential" } else { "ShadowPod" };
                asked["migrationStrategy"] = json!(strategy);
                if swap < 2 {
                    asked["identitySwapMode"] = json!(["ExchangeFence", "Cutoff"][swap]);
                }
            }
            _ => asked["migrationStrategy"] = json!("ShadowPod"),
        }
        let swaps = asked.get("identitySwapMode").is_some();
        let modes: &[Option<&str>] = match asked["migrationStrategy"].as_str() {
            _ if swaps => &[None],
            _ => &[None, Some("Cutoff"), Some("Drain"), Some("Park")],
        };
        if let Some(mode) = modes[rng.usize(..modes.len())] {
            asked["replayMode"] = json!(mode);
        }
        let agents = of_row.bool();
        if agents && rng.bool() {
            asked["transferMode"] = json!("Direct");
            asked["checkpointImageRepository"] = Value::Null;
        }
        let fault = if rng.u8(..3) == 0 { fault(&mut rng) } else { Fault::Nothing };
        let phases = fault.phases();
        let phase = Some(phases[rng.usize(..phases.len())]);
        Trial { fault, phase, kind, agents, asked }
    }
}

fn fault(rng: &mut fastrand::Rng) -> Fault {
    let all = [
        Fault::BrokerRestarts,
        Fault::MemoryAlarm,
        Fault::OperatorCut(1),
        Fault::OperatorCut(10),
        Fault::CopyCut(End::Source, 1),
        Fault::CopyCut(End::Source, 10),
        Fault::CopyCut(End::Target, 10),
        Fault::KubeletKilled(End::Source),
        Fault::KubeletKilled(End::Target),
        Fault::RuntimeKilled(End::Source),
        Fault::RuntimeKilled(End::Target),
        Fault::RegistryAway,
        Fault::RegistryFails,
        Fault::ApiServerAway,
        Fault::SecretDeleted,
        Fault::ProcessKilled(End::Target),
        Fault::PodDeleted(End::Target),
        Fault::MigrationDeleted,
        Fault::MigrationForced,
        Fault::Aborted,
    ];
    all[rng.usize(..all.len())].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_soak_and_a_third_has_a_fault() {
        let soak = Soak { seed: 7, migrations: 600 };
        let all = || (0..soak.migrations).map(|nth| format!("{:?}", soak.trial(nth)));
        assert!(all().eq(all()));
        let faults = (0..soak.migrations).filter(|nth| soak.trial(*nth).fault != Fault::Nothing);
        let faults = faults.count();
        assert!((150..250).contains(&faults), "{faults} of 600");
    }
}
