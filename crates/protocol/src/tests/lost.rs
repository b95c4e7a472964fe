//! The way back when the source has died: somebody takes its place, or nobody does.

use super::*;
use crate::names::control_queue;
use crate::observation::{Heir, Trouble};
use crate::phase::Reached;
use crate::step::Step;

fn heir(listens: bool) -> Heir {
    Heir { pod: "consumer-1".into(), uid: "heir".into(), container_id: "c9".into(), listens }
}

/// The first state on the way forward that `wanted` picks.
fn state(wanted: impl Fn(&Phase) -> bool) -> State {
    let (states, _) = drive(None);
    states.into_iter().find(|state| wanted(&state.phase)).expect("reached")
}

/// Drives to the end from `state`, in which the source dies.
fn bereaved(mut state: State, heir: Option<&Heir>) -> (Vec<State>, Vec<Effect>) {
    let settings = Settings::default();
    let mut now = state.since;
    let (mut states, mut effects) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        if state.phase.is_final() {
            return (states, effects);
        }
        now = Time(now.0 + 2_100);
        let mut seen = obliging(&state.phase);
        let empty = Some(Counts::default());
        let broker = seen.broker.as_mut().expect("there");
        seen.heir = heir.cloned();
        seen.source = state
            .phase
            .plan()
            .filter(|plan| plan.source_uid == "heir")
            .map(|plan| Pod { owner: plan.owner.clone(), ..pod("heir", "worker-1", "c9") });
        if matches!(&state.phase, Phase::Unwinding { step: Undo::Divert, .. }) {
            broker.primary = empty;
        }
        let decision = decide(&spec(), &settings, &state, &seen, now);
        if decision.state != state {
            effects.extend(decision.effects);
            state = decision.state;
            states.push(state.clone());
        }
    }
    panic!("no end, last {:?}", states.last());
}

fn steps(states: &[State]) -> Vec<Undo> {
    let step = |state: &State| match &state.phase {
        Phase::Unwinding { step, .. } => Some(step.clone()),
        _ => None,
    };
    states.iter().filter_map(step).collect()
}

fn failed_as(states: &[State]) -> &str {
    let Some(Phase::Failed { failure, rolled_back: true }) = states.last().map(|s| &s.phase) else {
        panic!("not rolled back")
    };
    &failure.reason
}

fn ordered_to(effects: &[Effect], pod: &str) -> Vec<Option<String>> {
    let order = |effect: &Effect| match effect {
        Effect::Order(order) if order.pod == pod => Some(match &order.control {
            Control::StartReplay { queue, .. } => Some(queue.clone()),
            Control::EndReplay => None,
        }),
        _ => None,
    };
    effects.iter().filter_map(order).collect()
}

fn moved(effects: &[Effect]) -> Vec<&str> {
    let from = |effect| match effect {
        &Effect::Topology(Topology::Move { ref from, ref to }) if to == Q => Some(from.as_str()),
        _ => None,
    };
    effects.iter().filter_map(from).collect()
}

fn is_purge(effect: &Effect) -> bool {
    matches!(effect, Effect::Topology(Topology::Purge { .. }))
}

#[test]
fn before_cut_b_the_heir_works_off_the_first_side_queue() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Empty { .. }, .. }));
    let s1 = before.phase.plan().expect("a plan").names.s1.clone();
    let (states, effects) = bereaved(before, Some(&heir(true)));
    assert_eq!(failed_as(&states), "SourceLost");
    assert_eq!(ordered_to(&effects, "consumer-1"), [Some(s1), None]);
    assert!(!effects.iter().any(is_purge));
}

/// A fresh process binds its queue and consumes it at once: what it is then told comes too late.
#[test]
fn what_is_left_is_in_the_queue_before_an_heir_is_there() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Empty { .. }, .. }));
    let control = control_queue(&before.phase.plan().expect("a plan").source_pod);
    let (states, effects) = bereaved(before, None);
    assert!(!steps(&states).iter().any(|step| matches!(step, Undo::Heir(_))));
    let purged = Effect::Topology(Topology::Purge { queue: control });
    let order = position(&effects, |effect| *effect == purged);
    let first = position(&effects, |e| matches!(e, Effect::Topology(Topology::Move { .. })));
    assert!(order < first, "an order of before would lead it away");
    let all = "unwinding/target unwinding/refeed unwinding/settle unwinding/move-rest unwinding/remove failed";
    let names: Vec<_> = states.iter().map(|state| state.phase.step().name()).collect();
    assert_eq!(names.join(" "), all);
}

/// The dead one's order comes back to the control queue once the broker has noticed, and leads its heir away.
#[test]
fn an_heir_that_obeys_an_order_of_before_is_called_back() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Empty { .. }, .. }));
    let (states, _) = bereaved(before, None);
    let remove = |s: &&State| matches!(s.phase, Phase::Unwinding { step: Undo::Remove, .. });
    let state = states.iter().find(remove).expect("on its way");
    let obey = Settings::default().deadlines.obey;
    let next = |listens: bool, waited: u64| {
        let mut seen = obliging(&state.phase);
        seen.heir = Some(heir(listens));
        seen.acted = None;
        seen.trouble = Some(Trouble {
            reason: "QueueInUse".to_owned(),
            message: "queue S1 still has 1 consumer".to_owned(),
            permanent: false,
        });
        let now = Time(state.since.0 + waited);
        decide(&spec(), &Settings::default(), state, &seen, now).state.phase.step()
    };
    assert_eq!(next(true, obey), Step::UndoHeir);
    assert_eq!(next(true, obey - 1), Step::UndoRemove);
    assert_eq!(next(false, obey), Step::UndoRemove);
}

#[test]
fn before_the_checkpoint_the_heir_works_off_the_rest_and_finds_what_is_new_in_its_queue() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Freeze { .. }, .. }));
    let s1 = before.phase.plan().expect("a plan").names.s1.clone();
    let (states, effects) = bereaved(before, Some(&heir(true)));
    assert_eq!(failed_as(&states), "SourceLost");
    assert_eq!(ordered_to(&effects, "consumer-1"), [Some(s1), None]);
    assert!(!effects.iter().any(is_purge), "nobody has consumed the queue's copy");
    let rest = |s: &State| matches!(s.phase, Phase::Unwinding { reached: Reached::Rest, .. });
    assert!(states.iter().any(rest));
}

#[test]
fn what_an_heir_leaves_behind_is_moved_and_its_queue_is_not_purged() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Freeze { .. }, .. }));
    let s1 = before.phase.plan().expect("a plan").names.s1.clone();
    let (states, _) = bereaved(before, Some(&heir(true)));
    let rest = |s: &&State| {
        let Phase::Unwinding { reached, step, .. } = &s.phase else { return false };
        *reached == Reached::Rest && *step == Undo::Regather
    };
    let mut inherited = states.iter().find(rest).expect("on its way").clone();
    // Another one than the heir that the plan names by now, so that this one is gone, too.
    if let Phase::Unwinding { plan, .. } = &mut inherited.phase {
        plan.source_uid = "second".to_owned();
    }
    let (states, effects) = bereaved(inherited, None);
    assert_eq!(failed_as(&states), "SourceLost");
    assert!(!effects.iter().any(is_purge), "the queue alone has what came since cut B");
    let moved = moved(&effects);
    assert!(!moved.is_empty() && moved.iter().all(|from| *from == s1), "{moved:?}");
}

/// Its ReplicaSet has two pods, and deletes the source sooner or later: an operator that deletes the
/// target meanwhile leaves nobody.
#[test]
fn an_abort_comes_too_late_when_the_target_has_its_owner() {
    let aborted = Spec { abort: true, deleted: true, ..spec() };
    let (states, _) = drive(None);
    let at = |name: &str| states.iter().find(|s| s.phase.step().name() == name).expect("reached");
    let goes_back = |spec: &Spec, name: &str, target_ended: bool| {
        let state = at(name);
        let mut seen = Observation { source: preflight().source, ..everything(&state.phase) };
        seen.target.as_mut().expect("a target").ended = target_ended;
        let next = decide(spec, &Settings::default(), state, &seen, state.since);
        matches!(next.state.phase, Phase::Unwinding { .. })
    };
    assert!(goes_back(&aborted, "finalizing/overlap", false));
    assert!(!goes_back(&aborted, "finalizing/replace", false));
    assert!(goes_back(&spec(), "finalizing/replace", true), "the source is there still");
}

#[test]
fn on_the_way_back_from_cut_a_the_queue_is_fed_by_nobody() {
    let before = state(|p| matches!(p, Phase::Checkpointing { step: CutStep::CutA, .. }));
    let plan = before.phase.plan().expect("a plan").clone();
    let aborted = Spec { abort: true, ..spec() };
    let mut state = before;
    let mut done = Vec::new();
    for _ in 0..3 {
        let seen = obliging(&state.phase);
        let decision = decide(&aborted, &Settings::default(), &state, &seen, Time(9_000));
        (state, done) = (decision.state, decision.effects);
        if matches!(state.phase, Phase::Unwinding { step: Undo::WorkOff, .. }) {
            break;
        }
    }
    for binding in [vec![Binding::plain(&plan.names.gate)], plan.bindings].concat() {
        let unbound = Effect::Topology(Topology::UnbindQueue { queue: Q.to_owned(), binding });
        assert!(done.contains(&unbound), "{unbound:?} is not in {done:?}");
    }
}

#[test]
fn where_nobody_obeys_what_is_left_is_moved_in_order() {
    for heir in [None, Some(heir(false))] {
        let before =
            state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Empty { .. }, .. }));
        let names = before.phase.plan().expect("a plan").names.clone();
        let (states, effects) = bereaved(before, heir.as_ref());
        assert_eq!(failed_as(&states), "SourceLost");
        assert_eq!(moved(&effects), [&names.s1; 4]);
        let fed = position(&effects, |e| {
            matches!(e, Effect::Topology(Topology::BindQueue { queue, binding })
                if queue == Q && binding.source == names.gate)
        });
        let first = position(&effects, |e| matches!(e, Effect::Topology(Topology::Move { .. })));
        assert!(first < fed, "the old before the new");

        let before =
            state(|p| matches!(p, Phase::Checkpointing { step: CutStep::Freeze { .. }, .. }));
        let (states, effects) = bereaved(before, heir.as_ref());
        assert_eq!(failed_as(&states), "SourceLost");
        assert_eq!(moved(&effects)[..4], [&names.s1, &names.s2, &names.s1, &names.s2]);
        let purged = position(&effects, is_purge);
        assert!(
            purged < position(&effects, |e| matches!(e, Effect::Topology(Topology::Move { .. })))
        );
        assert!(steps(&states).contains(&Undo::Sweep));
    }
}

#[test]
fn a_source_that_dies_on_the_way_back_is_succeeded_too() {
    let (forward, _) = drive(None);
    let replaying = forward.iter().position(|s| s.phase.name() == PhaseName::Replaying);
    let (states, _) = drive(replaying);
    let back = states.iter().filter(|s| matches!(s.phase, Phase::Unwinding { .. }));
    for state in back {
        let Phase::Unwinding { step, .. } = &state.phase else { continue };
        let (after, effects) = bereaved(state.clone(), Some(&heir(true)));
        assert_eq!(failed_as(&after), "Aborted");
        let needed = !matches!(step, Undo::Remove);
        let orders = ordered_to(&effects, "consumer-1");
        assert_eq!(orders.last(), needed.then_some(&None), "from {step:?}: {orders:?}");
        // What has been fed again must not be dropped.
        if matches!(step, Undo::Refeed | Undo::Settle | Undo::Return | Undo::Rework) {
            assert!(!effects.iter().any(is_purge), "from {step:?}");
        }
    }
}

#[test]
fn in_mode_drain_the_target_must_get_on() {
    let settings = Settings::default();
    let limit = settings.deadlines.progress;
    let mut start = state(|p| p.name() == PhaseName::Replaying);
    if let Phase::Replaying { plan, progress, .. } = &mut start.phase {
        plan.mode = ReplayMode::Drain;
        progress.lag = 5_000;
        progress.at = start.since;
    }
    let ask = |state: &State, lag: u64, waited: u64| {
        let mut seen = obliging(&state.phase);
        let broker = seen.broker.as_mut().expect("there");
        broker.primary = Some(Counts { ready: lag, consumers: 1 });
        broker.s2 = Some(Counts { ready: 0, consumers: 1 });
        decide(&spec(), &settings, state, &seen, Time(start.since.0 + waited)).state
    };
    assert_eq!(ask(&start, 6_000, limit - 1), start, "there is still time");
    assert_eq!(ask(&start, 4_000, 10), start, "not every message is written down");
    let on = ask(&start, 4_000, limit / 3);
    assert!(matches!(&on.phase, Phase::Replaying { progress, .. } if progress.lag == 4_000));
    let Phase::Unwinding { failure, .. } = ask(&start, 5_000, limit).phase else {
        panic!("waits for ever")
    };
    assert_eq!(failure.reason, "NoProgress");
    let done = ask(&on, 0, 500_000);
    assert_eq!(done.phase.name(), PhaseName::Finalizing, "however long it takes");
}

#[test]
fn no_step_is_left_without_a_look_at_the_broker() {
    let (forward, _) = drive(None);
    let under_way = |state: &&State| state.phase != Phase::Pending && !state.phase.is_final();
    for state in forward.iter().filter(under_way) {
        let seen = Observation { broker: None, ..obliging(&state.phase) };
        let now = Time(state.since.0 + 1);
        let decision = decide(&spec(), &Settings::default(), state, &seen, now);
        assert_eq!((&decision.state, decision.effects), (state, Vec::new()));
    }
}
