//! Strategy Sequential: the source makes room for its copy.

use super::*;
use crate::broker::Order;
use crate::names::control_queue;
use crate::phase::{Failure, ParkStep, RestoreStep};

pub(super) fn settings() -> Settings {
    Settings { admission: true, ..Settings::default() }
}

fn of_a_set(pod: Pod) -> Pod {
    Pod { owner: Owner::StatefulSet("consumer".into()), ..pod }
}

/// The pod that came back under the source's name.
pub(super) fn returned(started: bool, running: bool, ended: bool) -> Pod {
    let mut copy = of_a_set(Pod { ours: true, ended, ..pod("copy", "worker-2", "c2") });
    let status = copy.statuses.get_mut("app").expect("there");
    (status.started, status.running) = (started, running);
    (copy.ready, copy.containers_ready) = (running, running);
    copy
}

pub(super) fn obliging_sequential(phase: &Phase) -> Observation {
    let mut seen = obliging(phase);
    seen.source = Some(of_a_set(pod("source", "worker-1", "c1")));
    match phase {
        Phase::Restoring { step: RestoreStep::Pull, .. } => seen.target = None,
        Phase::Restoring { step, .. } => {
            seen.source = None;
            let back = matches!(step, RestoreStep::Admit(_));
            seen.target = back.then(|| returned(true, true, false));
        }
        Phase::Replaying { .. } | Phase::Finalizing { .. } => {
            seen.source = None;
            seen.target = Some(returned(true, true, false));
        }
        _ => {}
    }
    seen
}

pub(super) type World<'a> = &'a dyn Fn(&Phase) -> Observation;

fn drive_sequential(abort_at: Option<usize>, world: World) -> (Vec<State>, Vec<Effect>) {
    drive_wish(spec(), abort_at, world)
}

pub(super) fn drive_wish(
    mut spec: Spec,
    abort_at: Option<usize>,
    world: World,
) -> (Vec<State>, Vec<Effect>) {
    let mut now = Time(1_000_000);
    let mut state = State::new(now);
    let (mut states, mut effects) = (vec![state.clone()], Vec::new());
    for count in 0..100 {
        if state.phase.is_final() {
            return (states, effects);
        }
        now = Time(now.0 + 2_100);
        spec.abort = abort_at.is_some_and(|at| count >= at);
        let decision = decide(&spec, &settings(), &state, &world(&state.phase), now);
        if decision.state != state {
            effects.extend(decision.effects);
            state = decision.state;
            states.push(state.clone());
        }
    }
    panic!("no end, last {:?}", states.last());
}

fn refused(owner: Owner, strategy: Option<Strategy>, settings: &Settings) -> Failure {
    let mut seen = preflight();
    seen.source.as_mut().expect("there").owner = owner;
    let spec = Spec { strategy, ..spec() };
    let decision = decide(&spec, settings, &State::new(Time(1)), &seen, Time(2));
    let Phase::Failed { failure, rolled_back: false } = decision.state.phase else {
        panic!("accepted")
    };
    failure
}

#[test]
fn the_copy_takes_the_sources_name_and_finds_its_order() {
    let (states, effects) = drive_sequential(None, &obliging_sequential);
    let Some(Phase::Completed { plan, .. }) = states.last().map(|s| &s.phase) else {
        panic!("{:?}", states.last())
    };
    assert_eq!(plan.target_pod, plan.source_pod);
    let vacated = position(&effects, |e| *e == Effect::Vacate);
    let told = position(&effects, |e| {
        matches!(e, Effect::Order(order)
            if matches!(&order.control, Control::StartReplay { queue, .. } if queue == Q))
    });
    let admitted = position(&effects, |e| *e == Effect::Admit { node: "worker-2".into() });
    assert!(vacated < told && told < admitted);
    assert!(!effects.contains(&Effect::CreateTarget) && !effects.contains(&Effect::DeleteSource));
    let survivor = control_queue("consumer-0");
    assert!(!effects.iter().any(|e| {
        matches!(e, Effect::Topology(Topology::DeleteQueue { name }) if *name == survivor)
    }));
}

#[test]
fn an_abort_is_in_time_until_the_source_goes() {
    let (forward, _) = drive_sequential(None, &obliging_sequential);
    let vacate = |s: &State| matches!(s.phase, Phase::Restoring { step: RestoreStep::Vacate, .. });
    let vacate = forward.iter().position(vacate).expect("reached");
    for at in 1..forward.len() {
        let (states, _) = drive_sequential(Some(at), &obliging_sequential);
        let last = states.last().map(|s| &s.phase);
        if at < vacate {
            assert!(matches!(last, Some(Phase::Failed { rolled_back: true, .. })), "at {at}");
        } else {
            assert!(matches!(last, Some(Phase::Completed { .. })), "at {at}: {last:?}");
        }
    }
}

#[test]
fn a_source_that_is_not_going_yet_can_stay() {
    let (forward, _) = drive_sequential(None, &obliging_sequential);
    let state = forward.iter().find(|s| s.phase.step().name() == "restoring/vacate");
    let state = state.expect("reached");
    let aborted = |terminating| {
        let source = Pod { terminating, ..of_a_set(pod("source", "worker-1", "c1")) };
        let seen = Observation { source: Some(source), ..obliging_sequential(&state.phase) };
        let spec = Spec { abort: true, ..spec() };
        let next = decide(&spec, &settings(), state, &seen, state.since).state.phase;
        matches!(next, Phase::Unwinding { .. })
    };
    assert!(aborted(false) && !aborted(true));
}

#[test]
fn a_copy_that_never_ran_is_restored_on_the_other_node() {
    let fails_on_the_target = |phase: &Phase| {
        let mut seen = obliging_sequential(phase);
        if let Phase::Restoring { step: RestoreStep::Admit(attempt), .. } = phase
            && attempt.failed < 3
        {
            seen.target = Some(returned(false, false, true));
        }
        seen
    };
    let (states, effects) = drive_sequential(None, &fails_on_the_target);
    let Some(Phase::Completed { plan, .. }) = states.last().map(|s| &s.phase) else {
        panic!("{:?}", states.last())
    };
    let nodes: Vec<&str> = effects
        .iter()
        .filter_map(|e| if let Effect::Admit { node } = e { Some(node.as_str()) } else { None })
        .collect();
    assert_eq!(nodes, ["worker-2", "worker-1", "worker-2", "worker-1"]);
    assert_eq!((plan.target_node.as_str(), plan.source_node.as_str()), ("worker-1", "worker-1"));
    let deleted = effects.iter().filter(|e| **e == Effect::DeleteTarget).count();
    assert_eq!(deleted, 3);
    // What went from node to node is on one of them only.
    let direct = Spec { transfer: Transfer::Direct, ..spec() };
    let (_, effects) = drive_wish(direct, None, &fails_on_the_target);
    let admitted = effects.iter().filter(|e| matches!(e, Effect::Admit { .. })).count();
    let there = Effect::Admit { node: "worker-2".into() };
    assert_eq!((admitted, effects.iter().filter(|e| **e == there).count()), (4, 4));
}

#[test]
fn a_copy_that_ran_and_ended_is_never_restored_again() {
    let crashes = |phase: &Phase| {
        let mut seen = obliging_sequential(phase);
        if matches!(phase, Phase::Restoring { step: RestoreStep::Admit(_), .. }) {
            seen.target = Some(returned(true, false, true));
        }
        seen
    };
    let (states, effects) = drive_sequential(None, &crashes);
    assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    assert!(!effects.contains(&Effect::DeleteTarget));

    let crashes_later = |phase: &Phase| {
        let mut seen = obliging_sequential(phase);
        if matches!(phase.name(), PhaseName::Replaying | PhaseName::Finalizing) {
            seen.target = None;
        }
        seen
    };
    let (states, effects) = drive_sequential(None, &crashes_later);
    assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    assert!(!effects.contains(&Effect::DeleteTarget));
}

#[test]
fn a_strategy_that_does_not_fit_the_owner_is_refused() {
    let set = || Owner::StatefulSet("consumer".into());
    let without = refused(set(), None, &Settings::default());
    assert!(without.message.contains("StatefulSet consumer"), "{}", without.message);
    let bare = refused(Owner::Bare, Some(Strategy::Sequential), &settings());
    assert!(bare.message.contains("use ShadowPod"), "{}", bare.message);
}

/// The same in mode `Park`.
fn obliging_parked(phase: &Phase) -> Observation {
    let mut seen = obliging_sequential(phase);
    if let Some(source) = &mut seen.source {
        source.remembers = true;
    }
    let broker = seen.broker.as_mut().expect("there");
    match phase {
        Phase::Checkpointing { step: CutStep::Park(ParkStep::Leave { .. }), .. } => {
            broker.park = Some(Counts::default());
        }
        Phase::Unwinding { .. } => {
            (broker.park, broker.park2) = (Some(Counts::default()), Some(Counts::default()));
            broker.primary = Some(Counts { ready: 9, consumers: 1 });
        }
        _ => {}
    }
    seen
}

#[test]
fn in_mode_park_the_copy_finds_the_order_to_go_on() {
    let wish = Spec { replay_mode: Some(ReplayMode::Park), ..spec() };
    let (states, effects) = drive_wish(wish.clone(), None, &obliging_parked);
    let Some(Phase::Completed { plan, .. }) = states.last().map(|s| &s.phase) else {
        panic!("did not complete: {:?}", states.last())
    };
    let order = |pod: &str, control| Effect::Order(Order::new(pod, control));
    let at = |wanted: &Effect| effects.iter().position(|effect| effect == wanted);
    let deleted = at(&Effect::Vacate).expect("it makes room");
    let told = at(&order(&plan.target_pod, Control::EndReplay)).expect("it is told");
    let admitted = effects.iter().position(|effect| matches!(effect, Effect::Admit { .. }));
    assert!(deleted < told && told < admitted.expect("it comes"), "{effects:?}");
    let unbinds = |it: &Effect| matches!(it, Effect::Topology(Topology::UnbindQueue { .. }));
    assert!(!effects.iter().any(unbinds), "its feed is left alone");
    // Whoever aborts before the source is going gets it back.
    let step = states.iter().position(|state| {
        matches!(state.phase, Phase::Restoring { step: RestoreStep::Vacate, .. })
    });
    for abort_at in 1..step.expect("it makes room") {
        let (states, effects) = drive_wish(wish.clone(), Some(abort_at), &obliging_parked);
        let end = states.last().map(|state| &state.phase);
        assert!(
            matches!(end, Some(Phase::Failed { rolled_back: true, .. })),
            "{abort_at}: {end:?}"
        );
        assert!(!effects.contains(&Effect::Vacate), "{abort_at}");
    }
}
