//! The protocol's table of transitions is the truth: every one is made, and no other.

use std::collections::BTreeSet;

use fastrand::Rng;
use shadow_protocol::spec::{IdentitySwap, ReplayMode};
use shadow_protocol::step::Step;
use shadow_sim::campaign::{self, Tally};
use shadow_sim::run;
use shadow_sim::scenario::{Fault, OwnerKind, Scenario, WorldFault};

/// A transition that takes a coincidence is found within so many tries, or it is not there.
const TRIES: u64 = 20_000;

/// What a coincidence needs: a workload, and faults at the steps that it is about.
type Coincidence = (Step, Step, fn(&mut Rng, &mut Scenario));

/// The transitions that the faults of every step, one at a time, do not bring about.
const COINCIDENCES: [Coincidence; 27] = [
    (Step::Return, Step::UndoTarget, |rng, s| {
        s.faults.push(Fault::Step(Step::Install, 0, WorldFault::Flood));
        s.faults.push(Fault::Step(Step::Return, rng.u64(..10), WorldFault::Abort));
    }),
    (Step::Recall, Step::UndoTarget, |rng, s| {
        s.faults.push(Fault::Step(Step::Quiesce, rng.u64(..50), WorldFault::ApplicationsCutOff));
        s.faults.push(Fault::Step(Step::Recall, 1, WorldFault::Abort));
    }),
    (Step::Quiesce, Step::Recall, |rng, s| {
        s.faults.push(Fault::Step(Step::Empty, rng.u64(150..310), WorldFault::Flood));
    }),
    (Step::Vacate, Step::UndoTarget, |_, s| {
        (s.owner, s.mode) = (OwnerKind::StatefulSet, Some(ReplayMode::Cutoff));
        s.faults.push(Fault::Step(Step::Vacate, 0, WorldFault::OperatorCrashes));
        s.faults.push(Fault::Step(Step::Vacate, 1, WorldFault::Abort));
    }),
    (Step::Admit, Step::Retire, |rng, s| {
        (s.owner, s.mode) = (OwnerKind::StatefulSet, Some(ReplayMode::Cutoff));
        s.faults.push(Fault::Step(Step::Admit, rng.u64(..30), WorldFault::OperatorCrashes));
        s.faults.push(Fault::Step(Step::Admit, rng.u64(..200), WorldFault::TargetEnds));
    }),
    (Step::Replaying, Step::Replaying, |_, s| s.mode = Some(ReplayMode::Drain)),
    (Step::UndoWorkOff, Step::UndoWorkOff, |_, s| {
        (s.backlog, s.habits.service) = (1_000, 4);
        s.faults.push(Fault::Step(Step::CutA, 0, WorldFault::Abort));
    }),
    (Step::UndoFetch, Step::UndoFetch, |rng, s| {
        slow(rng, s);
        s.faults.push(Fault::Step(Step::Empty, rng.u64(..300), WorldFault::Abort));
    }),
    (Step::UndoDivert, Step::UndoDivert, |rng, s| {
        s.faults.push(Fault::Step(Step::CutA, rng.u64(..60), WorldFault::Abort));
        s.faults.push(Fault::Step(Step::UndoDivert, rng.u64(..80), WorldFault::ApplicationsCutOff));
    }),
    (Step::UndoReturn, Step::UndoReturn, |rng, s| {
        slow(rng, s);
        s.faults.push(Fault::Step(Step::CutA, rng.u64(..100), WorldFault::Abort));
    }),
    (Step::UndoReturn, Step::UndoRework, cut_off_as_it_returns),
    (Step::UndoRework, Step::UndoRework, cut_off_as_it_returns),
    (Step::UndoRework, Step::UndoHeir, |rng, s| {
        cut_off_as_it_returns(rng, s);
        s.faults.push(Fault::Step(Step::UndoRework, rng.u64(..20), WorldFault::SourceRestarts));
    }),
    (Step::UndoMoveRest, Step::UndoMoveRest, |rng, s| {
        // Deliveries trail for longer than anybody waits.
        (s.owner, s.trail, s.interval) = (OwnerKind::Bare, rng.u64(1_000..1_800), 8);
        s.faults.push(Fault::Step(Step::CutA, 0, WorldFault::SourceGone));
    }),
    (Step::MakeRoom, Step::UndoTarget, |_, s| {
        swap(s);
        s.faults.push(Fault::Step(Step::MakeRoom, 0, WorldFault::OperatorCrashes));
        s.faults.push(Fault::Step(Step::MakeRoom, 1, WorldFault::Abort));
    }),
    (Step::HopPrepare, Step::UndoTarget, |_, s| {
        swap(s);
        s.faults.push(Fault::Step(Step::HopPrepare, 0, WorldFault::OperatorCrashes));
        s.faults.push(Fault::Step(Step::HopPrepare, 1, WorldFault::ApplicationsCutOff));
    }),
    (Step::UndoRemove, Step::UndoRemove, |rng, s| {
        // Both die.
        source_gone_late(rng, s);
        source_gone_late(rng, s);
    }),
    (Step::Pending, Step::Failed, |_, s| {
        s.owner = OwnerKind::Bare;
        s.faults.push(Fault::World(0, WorldFault::SourceGone));
    }),
    (Step::UndoHeir, Step::UndoSettle, |rng, s| {
        // It restarts before its checkpoint, and then it is gone.
        (s.owner, s.mode) = (OwnerKind::Bare, Some(ReplayMode::Cutoff));
        s.faults.push(Fault::Step(Step::Quiesce, 0, WorldFault::SourceRestarts));
        s.faults.push(Fault::Step(Step::UndoRegather, rng.u64(..40), WorldFault::SourceGone));
    }),
    (Step::UndoRemove, Step::UndoReturn, |rng, s| {
        // It dies with an order in its hands, and the broker does not notice.
        (s.owner, s.mode) = (OwnerKind::Bare, Some(ReplayMode::Park));
        s.habits.remembers = true;
        s.faults.push(Fault::Step(Step::ParkLeave, rng.u64(..10), WorldFault::SourceNodeGone));
    }),
    (Step::HopAdmit, Step::UndoTarget, copy_ends),
    (Step::HopRetry, Step::Vacate, |rng, s| {
        swap(s);
        s.faults.push(Fault::Step(Step::HopAdmit, 0, WorldFault::RestoreFails));
        s.faults.push(Fault::Step(Step::HopRetry, rng.u64(..20), WorldFault::TargetGone));
    }),
    (Step::HopRetry, Step::UndoTarget, |rng, s| {
        swap(s);
        s.faults.push(Fault::Step(Step::HopAdmit, 0, WorldFault::RestoreFails));
        s.faults.push(Fault::Step(Step::HopRetry, rng.u64(..20), WorldFault::ApplicationsCutOff));
    }),
    (Step::Replaying, Step::ReplayingCommitted, source_gone_late),
    (Step::Open, Step::OpenCommitted, source_gone_late),
    (Step::Overlap, Step::OverlapCommitted, source_gone_late),
    (Step::HopAgain, Step::UndoTarget, |rng, s| {
        copy_ends(rng, s);
        s.faults.push(Fault::Step(Step::HopAgain, rng.u64(..20), WorldFault::TargetGone));
    }),
];

fn swap(s: &mut Scenario) {
    (s.owner, s.swap) = (OwnerKind::StatefulSet, IdentitySwap::ExchangeFence);
    s.mode = Some(ReplayMode::Cutoff);
}

/// The copy of a second hop ends before it is known to have begun.
fn copy_ends(rng: &mut Rng, s: &mut Scenario) {
    swap(s);
    s.faults.push(Fault::Step(Step::HopAdmit, rng.u64(..30), WorldFault::OperatorCrashes));
    s.faults.push(Fault::Step(Step::HopAdmit, rng.u64(..200), WorldFault::TargetEnds));
}

/// The source of a second hop, itself a copy, is gone when its own copy is about to take over.
fn source_gone_late(rng: &mut Rng, s: &mut Scenario) {
    swap(s);
    s.faults.push(Fault::Step(Step::HopAdmit, rng.u64(50..700), WorldFault::TargetGone));
}

/// It takes long to finish what it holds, longer than an order is waited for.
fn slow(rng: &mut Rng, s: &mut Scenario) {
    (s.habits.prefetch, s.habits.service, s.habits.late_acks) = (16, rng.u64(50..250), 0);
    (s.publishers, s.interval, s.backlog) = (2, 400, rng.u32(..32));
}

fn cut_off_as_it_returns(rng: &mut Rng, s: &mut Scenario) {
    slow(rng, s);
    s.faults.push(Fault::Step(Step::CutA, rng.u64(..100), WorldFault::Abort));
    s.faults.push(Fault::Step(Step::UndoReturn, rng.u64(..200), WorldFault::ApplicationsCutOff));
}

/// The first run in which it comes about and nothing is violated.
fn find(&(from, to, arrange): &Coincidence) -> Option<u64> {
    (0..TRIES).find(|&seed| {
        let mut scenario = Scenario::from_seed(seed);
        if scenario.mode == Some(ReplayMode::Park) || scenario.swap != IdentitySwap::None {
            return false;
        }
        scenario.faults.clear();
        arrange(&mut Rng::with_seed(seed), &mut scenario);
        let verdict = run(scenario, None);
        verdict.transitions.contains(&(from, to)) && verdict.violations.is_empty()
    })
}

/// Every fault of the world at every step, forwards and on the way back; the way back is hard for
/// an application that does not remember its queue.
fn every_step() -> Tally {
    let mut tally = Tally::default();
    for mut scenario in Scenario::kinds() {
        tally.join(campaign::every_step(&scenario, |_| true));
        // Mode Park needs one that does.
        scenario.habits.remembers = scenario.mode == Some(ReplayMode::Park);
        tally.join(campaign::every_step_on_the_way_back(&scenario));
    }
    tally
}

#[test]
fn every_transition_of_the_table_is_made_and_no_other() {
    let mut tally = every_step();
    println!("{} plans: {:?}", tally.plans, tally.ends);
    for failure in tally.failures.iter().take(3) {
        println!("{failure:#?}: {:?}", run(failure.clone(), None).violations);
    }
    assert!(tally.failures.is_empty(), "{} plans fail", tally.failures.len());
    tally.join(campaign::plans(0, 5_000));
    for coincidence in &COINCIDENCES {
        let (from, to, _) = *coincidence;
        let seed = find(coincidence);
        println!("{from} → {to}: seed {seed:?}");
        tally.transitions.extend(seed.map(|_| (from, to)));
    }
    let table: BTreeSet<(Step, Step)> = Step::transitions().collect();
    let never: Vec<_> = table.difference(&tally.transitions).collect();
    assert!(never.is_empty(), "never made: {never:?}");
    let unknown: Vec<_> = tally.transitions.difference(&table).collect();
    assert!(unknown.is_empty(), "not in the table: {unknown:?}");
}
