//! Without a queue: strategy Sequential, and nothing is asked of a broker.

use super::sequential::{World, drive_wish, obliging_sequential};
use super::*;
use crate::phase::{AloneStep, RestoreStep};
use crate::step::Step;

fn wish() -> Spec {
    Spec { queue: None, ..spec() }
}

/// There is no broker to look at.
fn obliging_alone(phase: &Phase) -> Observation {
    let mut seen = Observation {
        broker: Some(BrokerView::default()),
        ..asked::asked(phase, obliging_sequential(phase))
    };
    if let Some(preflight) = &mut seen.preflight {
        preflight.survey = None;
    }
    seen
}

fn drive_alone(abort_at: Option<usize>, world: World) -> (Vec<State>, Vec<Effect>) {
    drive_wish(wish(), abort_at, world)
}

fn at_broker(effect: &Effect) -> bool {
    matches!(effect, Effect::Topology(_) | Effect::Order(_))
}

#[test]
fn it_goes_by_the_shortest_way_and_asks_nothing_of_a_broker() {
    let (states, effects) = drive_alone(None, &obliging_alone);
    let steps: Vec<Step> = states.iter().map(|state| state.phase.step()).collect();
    let expected = [
        Step::Pending,
        Step::AlonePull,
        Step::AloneFreeze,
        Step::Transferring,
        Step::Pull,
        Step::Vacate,
        Step::Prepare,
        Step::Admit,
        Step::OpenCommitted,
        Step::Retire,
        Step::Remove,
        Step::Completed,
    ];
    assert_eq!(steps, expected);
    let at = |wanted: &Effect| position(&effects, |effect| effect == wanted);
    // All that can be done before the checkpoint, then before the source goes.
    assert!(at(&Effect::Lock) < at(&Effect::Checkpoint));
    assert!(at(&Effect::PrePull) < at(&Effect::Checkpoint));
    assert!(at(&Effect::PullCheckpoint) < at(&Effect::Vacate));
    assert!(at(&Effect::Hold) < at(&Effect::Vacate));
    assert!(at(&Effect::Vacate) < at(&Effect::Admit { node: "worker-2".into() }));
    assert!(effects.contains(&Effect::Release) && effects.contains(&Effect::DeleteJob));
}

#[test]
fn nothing_is_asked_of_a_broker_wherever_it_is_given_up() {
    let (forward, _) = drive_alone(None, &obliging_alone);
    let vacate = forward.iter().position(|state| state.phase.step() == Step::Vacate);
    for at in 0..forward.len() {
        let (states, effects) = drive_alone(Some(at), &obliging_alone);
        assert!(!effects.iter().any(at_broker), "at {at}: {effects:?}");
        for state in &states {
            let wanted = crate::decide::interest(&state.phase);
            let unasked = wanted.without_broker() == wanted;
            assert!(unasked || state.phase == Phase::Pending, "{}", state.phase.step());
        }
        let last = states.last().map(|state| &state.phase);
        if Some(at) < vacate {
            let undone = at > 0;
            assert!(
                matches!(last, Some(Phase::Failed { rolled_back, .. }) if *rolled_back == undone)
            );
            assert!(!effects.contains(&Effect::Vacate));
        } else {
            assert!(matches!(last, Some(Phase::Completed { .. })), "at {at}: {last:?}");
        }
    }
}

#[test]
fn what_nobody_replays_is_counted_from_before_the_checkpoint() {
    let (states, _) = drive_alone(None, &obliging_alone);
    let freeze = |state: &&State| {
        let step = CutStep::Alone(AloneStep::Freeze);
        matches!(&state.phase, Phase::Checkpointing { step: found, .. } if *found == step)
    };
    let frozen = states.iter().find(freeze).expect("reached");
    let last = states.last().expect("the end");
    let Phase::Completed { commit, taken, .. } = &last.phase else { panic!("{last:?}") };
    // The kubelet took 300 ms, and had answered when the step began: the world here is quick.
    let whole_until = Time(frozen.since.0 - 300);
    assert_eq!(taken.whole_until, Some(whole_until));
    assert_eq!(last.phase.unreplayed(), Some(commit.at().since(whole_until)));
    let (with_a_queue, _) = drive_wish(spec(), None, &obliging_sequential);
    assert_eq!(with_a_queue.last().and_then(|state| state.phase.unreplayed()), None);
}

#[test]
fn a_copy_that_never_ran_is_restored_on_the_other_node() {
    let fails_on_the_target = |phase: &Phase| {
        let mut seen = obliging_alone(phase);
        if let Phase::Restoring { step: RestoreStep::Admit(attempt), .. } = phase
            && attempt.failed == 0
        {
            seen.target = Some(super::sequential::returned(false, false, true));
        }
        seen
    };
    let (states, effects) = drive_alone(None, &fails_on_the_target);
    assert!(matches!(states.last().map(|s| &s.phase), Some(Phase::Completed { .. })));
    let admitted = effects.iter().filter(|effect| matches!(effect, Effect::Admit { .. })).count();
    assert_eq!(admitted, 2);
    assert!(!effects.iter().any(at_broker));
}

#[test]
fn while_the_api_server_can_not_be_asked_nothing_is_decided() {
    let (states, _) = drive_alone(None, &obliging_alone);
    for state in states.iter().filter(|state| state.phase != Phase::Pending) {
        let seen = Observation { broker: None, ..obliging_alone(&state.phase) };
        let decision = crate::decide::decide(
            &wish(),
            &super::sequential::settings(),
            state,
            &seen,
            Time(state.since.0 + 10),
        );
        assert!(decision.state == *state, "{}", state.phase.step());
    }
}

#[test]
fn a_source_that_dies_before_it_is_to_go_is_lost() {
    let (states, _) = drive_alone(None, &obliging_alone);
    for step in [Step::AlonePull, Step::AloneFreeze, Step::Transferring, Step::Pull] {
        let state = states.iter().find(|state| state.phase.step() == step).expect("reached");
        let mut seen = obliging_alone(&state.phase);
        seen.source = None;
        let settings = super::sequential::settings();
        let next = decide(&wish(), &settings, state, &seen, state.since).state.phase;
        let Phase::Unwinding { failure, .. } = next else { panic!("{step}: {next:?}") };
        assert_eq!(failure.reason, "SourceLost");
    }
}
