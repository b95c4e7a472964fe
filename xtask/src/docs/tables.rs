//! The phase diagram, the transition table, and the handoff step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use shadow_protocol::decide::{deadline, effects, interest};
use shadow_protocol::effect::Effect;
use shadow_protocol::observation::Owner;
use shadow_protocol::phase::{Phase, Reached};
use shadow_protocol::spec::{IdentitySwap, ReplayMode, Settings, Spec, Strategy, Transfer};
use shadow_protocol::step::Step;

use super::sample::Sample;
use super::words;

/// One of the tables of steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Replay,
    Park,
    Sequential,
    Alone,
    Hop,
    Back,
}

/// The tables in which a step is found: the first that comes by it, and those where it is another.
fn ways(step: Step) -> &'static [Way] {
    match step {
        Step::Pending
        | Step::Install
        | Step::CutA
        | Step::Divert
        | Step::Empty
        | Step::Return
        | Step::CutB
        | Step::Drain
        | Step::Recall
        | Step::Quiesce
        | Step::Arm
        | Step::Freeze
        | Step::Continue
        | Step::Replaying
        | Step::Open
        | Step::Overlap
        | Step::Replace
        | Step::Completed => &[Way::Replay],
        Step::ParkDeclare
        | Step::ParkStop
        | Step::ParkFreeze
        | Step::ParkLeave
        | Step::Hand
        | Step::OverlapCommitted
        | Step::ReplaceCommitted => &[Way::Park],
        Step::Order | Step::Beside => &[Way::Replay, Way::Park],
        Step::AlonePull | Step::AloneFreeze => &[Way::Alone],
        Step::Transferring => &[Way::Replay, Way::Park, Way::Alone],
        Step::Pull => &[Way::Sequential, Way::Alone, Way::Hop],
        Step::Vacate | Step::Prepare | Step::Admit | Step::Retry => &[Way::Sequential, Way::Alone],
        Step::ReplayingCommitted => &[Way::Sequential],
        Step::MakeRoom
        | Step::HopPrepare
        | Step::HopAdmit
        | Step::HopRetry
        | Step::Hop
        | Step::HopAgain => &[Way::Hop],
        Step::OpenCommitted => &[Way::Park, Way::Sequential, Way::Alone],
        Step::Retire | Step::Remove => &[Way::Replay, Way::Park, Way::Sequential, Way::Alone],
        Step::UndoTarget
        | Step::UndoClear
        | Step::UndoWorkOff
        | Step::UndoFetch
        | Step::UndoDivert
        | Step::UndoRegather
        | Step::UndoContinue
        | Step::UndoHeir
        | Step::UndoSweep
        | Step::UndoUnfeed
        | Step::UndoPurge
        | Step::UndoRefeed
        | Step::UndoSettle
        | Step::UndoRework
        | Step::UndoMoveRest
        | Step::UndoReturn
        | Step::UndoRemove
        | Step::Failed => &[Way::Back],
    }
}

/// The phases, and which follow which.
pub fn phases() -> String {
    let mut left: BTreeMap<(Step, Step), BTreeSet<Step>> = BTreeMap::new();
    let first = |step: Step| {
        Step::ALL.iter().copied().find(|other| other.phase() == step.phase()).unwrap_or(step)
    };
    for (from, to) in Step::transitions().filter(|(from, to)| from.phase() != to.phase()) {
        left.entry((first(from), first(to))).or_default().insert(from);
    }
    let mut text = "```mermaid\nstateDiagram-v2\n    [*] --> Pending\n".to_owned();
    for ((from, to), by) in left {
        let all = Step::ALL.iter().filter(|step| step.phase() == from.phase()).count();
        let label = match by.len() {
            // The only one, or none in particular.
            1 if all == 1 => String::new(),
            many if many == all => " : any step".to_owned(),
            _ => {
                format!(" : {}", by.iter().map(|step| short(*step)).collect::<Vec<_>>().join(", "))
            }
        };
        let _ = writeln!(text, "    {} --> {}{label}", capital(from.phase()), capital(to.phase()));
    }
    for step in Step::ALL.iter().filter(|step| step.next().is_empty()) {
        let _ = writeln!(text, "    {} --> [*]", capital(step.phase()));
    }
    text + "```\n"
}

/// Its name without the phase, where it has one.
fn short(step: Step) -> &'static str {
    step.name().split_once('/').map_or(step.name(), |(_, name)| name)
}

fn capital(word: &str) -> String {
    let mut letters = word.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// Every step, and which may follow it.
pub fn transitions() -> String {
    let mut text = "| from | to |\n|---|---|\n".to_owned();
    for from in Step::ALL.iter().filter(|step| !step.next().is_empty()) {
        let to: Vec<&str> =
            from.next().iter().map(|to| if to == from { "itself" } else { to.name() }).collect();
        let _ = writeln!(text, "| {from} | {} |", to.join(", "));
    }
    text
}

/// Migrations that differ, and in what.
type Samples = [(&'static str, Sample)];

/// What every step does, looks at, and how long it may take: a table for each way.
pub fn steps() -> anyhow::Result<Vec<(&'static str, String)>> {
    let deployment = || Owner::Deployment { replica_set: String::new(), deployment: String::new() };
    let set = || Owner::StatefulSet(String::new());
    let beside = |mode| {
        anyhow::Ok([
            (
                "a Deployment's only pod",
                Sample::new(mode, Strategy::ShadowPod, deployment())?.pinned(),
            ),
            ("one of several", Sample::new(mode, Strategy::ShadowPod, deployment())?),
            ("a bare pod", Sample::new(mode, Strategy::ShadowPod, Owner::Bare)?),
            ("the last of a StatefulSet", Sample::new(mode, Strategy::ShadowPod, set())?),
        ])
    };
    let sequential = [("", Sample::new(ReplayMode::Cutoff, Strategy::Sequential, set())?)];
    let alone = [("", Sample::new(ReplayMode::Alone, Strategy::Sequential, set())?)];
    let [_, mut before, mut after, _] = beside(ReplayMode::Cutoff)?;
    (before.0, before.1.reached) = ("before cut B", Reached::CutA);
    (after.0, after.1.reached) = ("after cut B", Reached::CutB);
    Ok(vec![
        ("replay", table(Way::Replay, &beside(ReplayMode::Cutoff)?)),
        ("park", table(Way::Park, &beside(ReplayMode::Park)?)),
        ("sequential", table(Way::Sequential, &sequential)),
        ("alone", table(Way::Alone, &alone)),
        ("hop", table(Way::Hop, &[("", Sample::second()?)])),
        ("back", table(Way::Back, &[before, after])),
    ])
}

fn table(way: Way, samples: &Samples) -> String {
    let mut text =
        "| step | is done, in order | is looked at | deadline |\n|---|---|---|---|\n".to_owned();
    for &step in Step::ALL.iter().filter(|step| ways(**step).contains(&way)) {
        let done = cell(samples, |sample| words::effects(&effects(&spec(), &sample.phase(step))));
        let seen = cell(samples, |sample| words::interest(interest(&sample.phase(step))));
        let limit = cell(samples, |sample| limit(step, &sample.phase(step)));
        let _ = writeln!(text, "| {step} | {done} | {seen} | {limit} |");
    }
    text
}

/// What is to be said of all samples, or of each where they differ.
fn cell(samples: &Samples, say: impl Fn(&Sample) -> String) -> String {
    let said: Vec<(&str, String)> =
        samples.iter().map(|(label, sample)| (*label, say(sample))).collect();
    let once: BTreeSet<&String> = said.iter().map(|(_, words)| words).collect();
    match once.first() {
        Some(words) if once.len() == 1 && words.is_empty() => "–".to_owned(),
        Some(words) if once.len() == 1 => (*words).clone(),
        _ => {
            let each = said.iter().map(|(label, words)| format!("*{label}:* {words}"));
            each.collect::<Vec<_>>().join("<br>")
        }
    }
}

/// How long the step may take, and what then, if the migration is not given up.
fn limit(step: Step, phase: &Phase) -> String {
    let settings = Settings::default();
    let limits = &settings.deadlines;
    let seconds = |millis: u64| format!("{} s", millis / 1_000);
    let goes_to = |wanted: Step| step.next().contains(&wanted);
    let told = effects(&spec(), phase).iter().any(|effect| matches!(effect, Effect::Order(_)));
    if goes_to(Step::UndoTarget) || step == Step::Pending {
        let limit = deadline(phase, &settings).map(seconds).unwrap_or_default();
        return if step == Step::Replaying { format!("the cutoff and {limit}") } else { limit };
    }
    match step {
        Step::Admit | Step::HopAdmit => {
            format!("{}, then another attempt", seconds(limits.restore))
        }
        Step::UndoHeir => format!("{}, then it goes on alone", seconds(limits.heir)),
        _ if told && goes_to(step) => format!("{}, then told again", seconds(limits.obey)),
        _ => String::new(),
    }
}

/// Any migration that has a queue.
fn spec() -> Spec {
    Spec {
        uid: String::new(),
        source_pod: String::new(),
        container: None,
        target_node: None,
        repository: None,
        strategy: None,
        transfer: Transfer::Registry,
        replay_mode: None,
        cutoff_ms: 0,
        identity_swap: IdentitySwap::None,
        pin: None,
        queue: Some("`Q`".to_owned()),
        exchange: String::new(),
        abort: false,
        deleted: false,
    }
}

#[cfg(test)]
mod tests {
    use shadow_sim::run;
    use shadow_sim::scenario::{OwnerKind, Scenario};

    use super::*;

    #[test]
    fn the_steps_of_a_migration_are_in_the_table_of_its_kind() {
        for scenario in Scenario::kinds() {
            let tables: &[Way] = match (scenario.owner, scenario.mode) {
                (OwnerKind::StatefulSet, _) if scenario.swap != IdentitySwap::None => {
                    &[Way::Replay, Way::Hop]
                }
                (OwnerKind::StatefulSet, Some(ReplayMode::Park)) => &[Way::Park, Way::Sequential],
                (OwnerKind::StatefulSet, Some(ReplayMode::Alone)) => &[Way::Alone],
                (OwnerKind::StatefulSet, _) => &[Way::Replay, Way::Sequential],
                (_, Some(ReplayMode::Park)) => &[Way::Park],
                _ => &[Way::Replay],
            };
            let made = run(scenario, None).transitions;
            assert!(made.iter().any(|(_, to)| *to == Step::Completed), "{made:?}");
            let left = made.iter().map(|(from, _)| *from).filter(|from| *from != Step::Pending);
            for step in left {
                assert!(ways(step).iter().any(|way| tables.contains(way)), "{step}");
            }
        }
    }

    #[test]
    fn every_step_is_in_a_table_and_has_its_own_sample() {
        let sample =
            Sample::new(ReplayMode::Cutoff, Strategy::ShadowPod, Owner::Bare).expect("a sample");
        for &step in Step::ALL {
            assert!(!ways(step).is_empty(), "{step}");
            assert_eq!(sample.phase(step).step(), step);
        }
    }

    #[test]
    fn the_diagram_says_which_steps_can_be_undone() {
        let diagram = phases();
        let undone = "hand, open, overlap, hop, hop-again, replace";
        assert!(diagram.contains(&format!("Finalizing --> Unwinding : {undone}\n")));
        assert!(diagram.contains("Checkpointing --> Unwinding : any step\n"));
        assert!(diagram.contains("Pending --> Checkpointing\n"));
    }
}
