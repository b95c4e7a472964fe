//! Mutants: the real protocol with one thing left out. The simulator must catch each of them, or it
//! would not catch a protocol that is wrong in that way.

use shadow_protocol::broker::{Binding, Counts, Emptiness, Topology};
use shadow_protocol::effect::Effect;
use shadow_protocol::names::Names;
use shadow_protocol::observation::Observation;
use shadow_protocol::phase::{CutStep, Phase, SwitchStep, Undo};
use shadow_protocol::spec::Settings;

/// What is left out. The first five are the holes of `docs/handoff.md`, "Why the obvious protocol is
/// wrong".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// The checkpoint is taken while both queues are fed: no cut A.
    NoCutA,
    /// Messages that wait in `Q` are not waited for.
    WaitingForgotten,
    /// `Q` is not fed when the copy wakes: it takes what is the source's.
    TargetStarves,
    /// At the switch the rest of `Q` is dropped.
    RestDropped,
    /// Statistics are believed that say "0 unacknowledged".
    StatisticsBelieved,
    /// The source is not parked for the checkpoint.
    NotParked,
    /// Cut B before `Q` is proved empty.
    EarlyCutB,
    /// Trailing deliveries are not waited for, nor looked for.
    NoSettle,
    /// The commit point before the source is proved gone.
    EarlyCommit,
    /// Rolled back without proving the target gone.
    UndeadTarget,
}

/// All of them.
pub const MUTANTS: [Mutant; 10] = [
    Mutant::NoCutA,
    Mutant::WaitingForgotten,
    Mutant::TargetStarves,
    Mutant::RestDropped,
    Mutant::StatisticsBelieved,
    Mutant::NotParked,
    Mutant::EarlyCutB,
    Mutant::NoSettle,
    Mutant::EarlyCommit,
    Mutant::UndeadTarget,
];

impl Mutant {
    /// What it does to the settings.
    pub fn settings(self, settings: &mut Settings) {
        if self == Mutant::NoSettle {
            settings.settle_ms = 0;
            settings.linger_ms = 0;
        }
    }

    /// What it makes the operator believe.
    pub fn see(self, phase: &Phase, seen: &mut Observation) {
        let cut = |wanted: fn(&CutStep) -> bool| matches!(phase, Phase::Checkpointing { step, .. } if wanted(step));
        let Some(broker) = &mut seen.broker else { return };
        match self {
            Mutant::WaitingForgotten if cut(|s| matches!(s, CutStep::CutA)) => {
                broker.primary = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::WaitingForgotten | Mutant::EarlyCutB
                if cut(|s| matches!(s, CutStep::Divert { .. } | CutStep::Empty { .. })) =>
            {
                broker.primary = Some(Counts::default());
                broker.primary_empty = Some(Emptiness::Proved);
                broker.s1 = Some(Counts { ready: 0, consumers: 1 });
            }
            Mutant::StatisticsBelieved => {
                let proof = Some(Emptiness::Proved);
                (broker.primary_empty, broker.s1_empty, broker.primary_quiet) =
                    (proof, proof, proof);
            }
            Mutant::NotParked
                if cut(|s| {
                    matches!(s, CutStep::Drain(_) | CutStep::Quiesce(_) | CutStep::Freeze { .. })
                }) =>
            {
                let consumers = u32::from(cut(|s| matches!(s, CutStep::Drain(_))));
                broker.s1 = Some(Counts { ready: 0, consumers });
                broker.park = Some(Counts { ready: 0, consumers: 1 });
                broker.s1_empty = Some(Emptiness::Proved);
            }
            Mutant::NoSettle if phase.taken().is_some() => {
                broker.s1 = Some(Counts::default());
            }
            Mutant::EarlyCommit
                if matches!(
                    phase,
                    Phase::Finalizing { step: SwitchStep::Replace(_) | SwitchStep::Overlap(_), .. }
                ) =>
            {
                seen.source = None;
            }
            Mutant::UndeadTarget
                if matches!(phase, Phase::Unwinding { step: Undo::Target, .. }) =>
            {
                seen.target = None;
                broker.primary = Some(Counts::default());
            }
            _ => {}
        }
    }

    /// What it does to an effect: `None` leaves it out.
    pub fn effect(self, names: &Names, phase: &Phase, effect: Effect) -> Option<Effect> {
        let bound = |wanted: &str, source: &str| {
            matches!(&effect, Effect::Topology(Topology::BindQueue { queue, binding })
                if queue == wanted && binding.source == source)
        };
        match self {
            Mutant::NoCutA
                if effect
                    == Effect::Topology(Topology::UnbindQueue {
                        queue: names.primary.clone(),
                        binding: Binding::plain(&names.gate),
                    }) =>
            {
                None
            }
            Mutant::TargetStarves if bound(&names.primary, &names.both) => None,
            Mutant::RestDropped
                if matches!(phase, Phase::Finalizing { .. }) && effect == Effect::OpenGate =>
            {
                Some(Effect::Topology(Topology::Purge { queue: names.primary.clone() }))
            }
            Mutant::NotParked
                if matches!(phase, Phase::Checkpointing { step: CutStep::Quiesce(_), .. }) =>
            {
                None
            }
            Mutant::UndeadTarget if effect == Effect::DeleteTarget => None,
            _ => Some(effect),
        }
    }
}
