//! The model itself: what can happen in a situation, and what comes of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use shadow_protocol::decide::Decision;
use shadow_protocol::phase::Phase;
use shadow_protocol::spec::ReplayMode;
use stateright::{Model, Property};

use super::Bounds;
use super::application::{Habits, Ledger, Memory, Pod, Process};
use super::clock;
use super::operator::{Constants, act, begin, cuts, private};
use super::oracle;
use super::situation::{Operator, Record, Situation, Who};
use super::wire::{Body, NAMES, Place, Wire};

/// What happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A publisher publishes its next message, which arrives at once.
    Publish(u8),
    /// What trails arrives in a queue.
    Arrive(u8, Place),
    /// A copy applies and acknowledges a message.
    Work(Who),
    /// A copy leaves its queue, as ordered.
    Obey(Who, Body),
    /// A copy that holds nothing any more consumes the queue it was told to.
    Go(Who),
    /// The operator looks, decides, and stores what it has decided.
    Decide(Box<Decision>),
    /// It carries out its next effect; of each publisher so many messages trail it.
    Act(Vec<u8>),
    /// It crashes; its successor knows what is stored, and comes at once or when all timers have
    /// ended.
    Crash { long: bool },
    /// Time passes.
    Tick,
    /// The order that wakes the source has waited long enough.
    Wake,
    /// A container begins to run.
    Start(Who),
    /// A pod that is being deleted is gone.
    Gone(Who),
    /// The user aborts.
    Abort,
    /// The source's container is restarted.
    Restart,
    /// The source's pod is gone, unasked for.
    Die,
}

/// The handoff, within bounds.
pub struct Handoff {
    pub bounds: Bounds,
    pub constants: Constants,
}

/// An event in a line; of a decision, where it leads.
pub fn describe(event: &Event) -> String {
    match event {
        Event::Decide(decision) => {
            let phase = &decision.state.phase;
            let step = match phase {
                Phase::Checkpointing { step, .. } => format!("{step:?}"),
                Phase::Restoring { step, .. } => format!("{step:?}"),
                Phase::Finalizing { step, .. } => format!("{step:?}"),
                Phase::Unwinding { step, reached, .. } => format!("undo {step:?} from {reached:?}"),
                _ => String::new(),
            };
            format!("=> {} {step}", phase.name().as_str())
        }
        event => format!("{event:?}"),
    }
}

impl Handoff {
    /// A source that consumes `Q`, and a migration about to touch the first thing.
    fn begin(&self, mode: ReplayMode, remembers: bool) -> Option<Situation> {
        let habits = Habits { prefetch: self.bounds.prefetch, remembers };
        let publishers = self.bounds.messages.len();
        let image = Memory { ledger: Ledger::new(publishers), told: None };
        let pod = Pod { container: 0, process: None, image, terminating: false, open: true };
        let mut situation = Situation {
            park: mode == ReplayMode::Park,
            habits,
            wire: Arc::new(Wire::new().ok()?),
            trailing: BTreeMap::new(),
            outlasting: false,
            late: false,
            published: vec![0; publishers],
            source: Some(pod),
            target: None,
            bereaved: None,
            operator: Operator::default(),
            record: Record::new(begin(mode, remembers)),
            abort: false,
            crashes: self.bounds.crashes,
            misfortunes: self.bounds.misfortunes,
        };
        situation.start(Who::Source);
        Some(situation)
    }

    fn operator(&self, now: &Situation, events: &mut Vec<Event>) {
        let settled = now.trailing.is_empty();
        let Operator { todo, acted, .. } = &now.operator;
        match (todo.front(), self.constants.decide(now)) {
            (Some(effect), _) if cuts(now, effect) => {
                events.extend(self.trails(now).into_iter().map(Event::Act));
            }
            (Some(_), _) => events.push(Event::Act(Vec::new())),
            (None, Some(decision)) => events.push(Event::Decide(Box::new(decision))),
            (None, None) => {
                // An application obeys before it is told a third time.
                let obeyed = [Who::Source, Who::Target]
                    .into_iter()
                    .all(|who| now.process(who).is_none() || now.wire.orders(who.pod()) < 2);
                let arrives = settled || (now.misfortunes > 0 && !now.outlasting);
                events.extend((arrives && obeyed).then_some(Event::Tick));
            }
        }
        if now.crashes > 0 && (acted.is_some() || !todo.is_empty()) {
            events.push(Event::Crash { long: false });
            // No deadline runs on the way back, and the rest counts from what a successor does.
            let timed = !matches!(now.phase(), Phase::Unwinding { .. });
            events.extend((settled && timed).then_some(Event::Crash { long: true }));
        }
    }

    /// How many messages of each publisher may trail a cut.
    fn trails(&self, now: &Situation) -> Vec<Vec<u8>> {
        let mut all = vec![Vec::new()];
        for (published, messages) in now.published.iter().zip(self.bounds.messages) {
            let most = messages - published;
            all = all
                .into_iter()
                .flat_map(|some| (0..=most).map(move |count| [some.as_slice(), &[count]].concat()))
                .collect();
        }
        all
    }

    fn copy(now: &Situation, who: Who, events: &mut Vec<Event>) {
        let Some(pod) = now.pod(who) else { return };
        if pod.terminating {
            events.push(Event::Gone(who));
        }
        let Some(process) = &pod.process else {
            events.extend((!pod.terminating).then_some(Event::Start(who)));
            return;
        };
        let busy = process.busy(&now.wire);
        if busy {
            events.push(Event::Work(who));
        }
        if process.going.is_none() {
            let order = process.order(who.pod(), &now.wire);
            events.extend(order.map(|order| Event::Obey(who, order)));
        } else if !busy {
            events.push(Event::Go(who));
        }
    }

    fn misfortunes(now: &Situation, events: &mut Vec<Event>) {
        if now.misfortunes == 0 {
            return;
        }
        if !now.abort {
            events.push(Event::Abort);
        }
        let source = now.source.as_ref().filter(|pod| pod.process.is_some() && !pod.terminating);
        if source.is_some() && now.bereaved.is_none() && !now.committed() {
            events.push(Event::Die);
            // Left open by the protocol: a fresh process that wakes on `Q` as its pod is about to be
            // deleted.
            events.extend((!now.replacing()).then_some(Event::Restart));
        }
    }
}

impl Model for Handoff {
    type State = Situation;
    type Action = Event;

    fn init_states(&self) -> Vec<Situation> {
        let modes = [(ReplayMode::Cutoff, self.bounds.remembers), (ReplayMode::Park, true)];
        modes.into_iter().filter_map(|(mode, remembers)| self.begin(mode, remembers)).collect()
    }

    fn actions(&self, now: &Situation, events: &mut Vec<Event>) {
        if now.phase().is_final() {
            return;
        }
        self.operator(now, events);
        if now.operator.todo.front().is_some_and(|effect| private(now, effect)) {
            return;
        }
        for ((publisher, published), most) in (0..).zip(&now.published).zip(self.bounds.messages) {
            events.extend((published < most).then_some(Event::Publish(publisher)));
        }
        events
            .extend(now.trailing.keys().map(|&(publisher, place)| Event::Arrive(publisher, place)));
        Self::copy(now, Who::Source, events);
        Self::copy(now, Who::Target, events);
        let waits = now.wire.counts(&NAMES.wake).is_some_and(|counts| counts.ready > 0);
        events.extend((waits && clock::may_wake(&now.record.state)).then_some(Event::Wake));
        Self::misfortunes(now, events);
    }

    fn next_state(&self, now: &Situation, event: Event) -> Option<Situation> {
        let mut next = now.clone();
        match event {
            Event::Publish(publisher) => next.publish(publisher, false),
            Event::Arrive(publisher, place) => next.arrive(publisher, place),
            Event::Work(who) => next.with(who, Process::work)?,
            Event::Obey(who, order) => next.with(who, |it, wire| it.obey(order, wire))?,
            Event::Go(who) => {
                let habits = next.habits;
                next.with(who, |process, wire| process.go(habits, wire))?;
            }
            Event::Decide(decision) => self.constants.go_on(&mut next, *decision),
            Event::Act(trails) => {
                for (publisher, count) in (0..).zip(trails) {
                    (0..count).for_each(|_| next.publish(publisher, true));
                }
                act(&mut next);
            }
            Event::Crash { long } => {
                next.operator = Operator::default();
                next.crashes -= 1;
                (0..if long { clock::OLDEST } else { 0 }).for_each(|_| next.tick());
            }
            Event::Tick => {
                next.tick();
                if !next.trailing.is_empty() {
                    next.outlasting = true;
                    next.misfortunes -= 1;
                }
                return (next != *now).then_some(next);
            }
            Event::Wake => Arc::make_mut(&mut next.wire).wake(),
            Event::Start(who) => next.start(who),
            Event::Gone(who) => next.remove(who),
            Event::Abort => {
                next.abort = true;
                next.misfortunes -= 1;
            }
            Event::Restart => {
                next.bereave();
                next.with(Who::Source, |process, wire| process.end(wire));
                let image = Memory { ledger: next.bereaved.clone()?, told: None };
                let pod = next.source.as_mut()?;
                (pod.process, pod.image) = (None, image);
            }
            Event::Die => {
                next.bereave();
                next.remove(Who::Source);
            }
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn is(now: &Situation, park: bool, completed: bool) -> bool {
            let parks = now.park;
            match now.phase() {
                Phase::Completed { .. } => completed && parks == park,
                Phase::Failed { rolled_back, .. } => *rolled_back && !completed && parks == park,
                _ => false,
            }
        }
        vec![
            Property::always("each message is applied or reachable", |_, now| oracle::whole(now)),
            Property::always("at most once", |_, now| oracle::once(now)),
            Property::always("in order", |_, now| oracle::ordered(now)),
            Property::always("one copy at most consumes Q", |_, now| oracle::alone(now)),
            Property::always("the survivor is kept", |_, now| oracle::kept(now)),
            Property::always("nothing is left over", |_, now| oracle::clean(now)),
            Property::eventually("it ends", |_, now: &Situation| now.phase().is_final()),
            Property::sometimes("Replay completes", |_, now| is(now, false, true)),
            Property::sometimes("Replay is rolled back", |_, now| is(now, false, false)),
            Property::sometimes("Park completes", |_, now| is(now, true, true)),
            Property::sometimes("Park is rolled back", |_, now| is(now, true, false)),
        ]
    }
}
