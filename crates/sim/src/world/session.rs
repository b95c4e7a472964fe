//! The operator's session with the broker: the lock, changes, orders; sessions that are lost, left
//! behind by a crash, or somebody else's.

use std::sync::Arc;

use shadow_broker::memory::core::{ConnectionId, Destination, Name, Publish, Published, Refusal};
use shadow_broker::memory::proofs::Proofs;
use shadow_broker::memory::{moving, topology};
use shadow_protocol::broker::{Binding, Order, Topology};
use shadow_protocol::decide::decide;
use shadow_protocol::effect::Effect;
use shadow_protocol::names::lock_queue;
use shadow_protocol::observation::{BrokerView, Observation, Trouble};
use shadow_protocol::phase::{Phase, State};
use shadow_protocol::spec::Spec;
use shadow_protocol::time::Time;

use super::effects::Outcome;
use super::operator::trouble;
use super::{EXCHANGE, Event, QUEUE, SOURCE, World};
use crate::application::Process;
use crate::message::Message;

/// Where operators are.
const PEER: &str = "10.0.1.1";
/// What the migration's connections call themselves.
const LABEL: &str = "shadow/migration";

/// A session.
#[derive(Debug)]
pub(super) struct Session {
    /// Holds the lock.
    pub(super) topology: ConnectionId,
    /// Publishes orders.
    pub(super) publisher: ConnectionId,
    pub(super) proofs: Proofs,
}

/// What an operator that is gone still tries to do.
#[derive(Debug)]
pub(super) struct Late {
    topology: ConnectionId,
    publisher: ConnectionId,
    effect: Effect,
}

impl World {
    /// Makes sure that there is a living session with the lock, if there is anything to lock.
    pub(super) fn take_lock(&mut self) -> bool {
        if self.scenario.alone() {
            return true;
        }
        let living = |session: &Session| self.broker.connected(session.topology);
        if self.operator.session.as_ref().is_some_and(living) {
            return true;
        }
        self.close_session();
        if self.now < self.broker_down_until {
            self.operator.fail(trouble("the broker can't be reached", false));
            return false;
        }
        let [topology, publisher] = [(); 2].map(|()| self.broker.connect(PEER, LABEL));
        let (ours, lock) = ([topology, publisher], lock_queue(QUEUE));
        if let Err(refusal) = topology::lock(&mut self.broker, topology, &ours, LABEL, &lock) {
            self.broker.close(topology);
            self.broker.close(publisher);
            let (reason, message) = ("QueueLocked".to_owned(), refusal.to_string());
            self.operator.fail(Trouble { reason, message, permanent: true });
            return false;
        }
        self.operator.session = Some(Session { topology, publisher, proofs: Proofs::default() });
        // A lost session begins the step anew.
        let todo = std::mem::take(&mut self.operator.todo);
        self.operator.next_step();
        self.operator.todo = todo;
        true
    }

    /// In order, by its owner.
    pub(super) fn close_session(&mut self) {
        if let Some(Session { topology, publisher, .. }) = self.operator.session.take() {
            self.broker.close(topology);
            self.broker.close(publisher);
        }
    }

    /// The broker's doing; the operator notices when it needs the session.
    pub(super) fn lose_session(&mut self) {
        if let Some(Session { topology, publisher, .. }) = &self.operator.session {
            self.broker.close_by_broker(*topology);
            self.broker.close_by_broker(*publisher);
        }
    }

    /// Its operator has crashed: the connections end with the process, or, if its node was cut off,
    /// when the broker notices; until then it may do what it was about to.
    pub(super) fn abandon_session(&mut self) {
        let next = self.operator.todo.get(self.operator.done).cloned();
        let Some(Session { topology, publisher, .. }) = self.operator.session.take() else {
            return;
        };
        if self.rng.bool() {
            self.broker.close(topology);
            self.broker.close(publisher);
            return;
        }
        let noticed = self.rng.u64(50..500);
        self.at(noticed, Event::Noticed(topology));
        self.at(noticed, Event::Noticed(publisher));
        if let Some(effect @ (Effect::Topology(_) | Effect::Order(_))) = next {
            self.late.push(Late { topology, publisher, effect });
            let after = self.rng.u64(1..250);
            self.at(after, Event::Late(self.late.len() - 1));
        }
    }

    /// A deposed operator acts: its connection is closed by then, or nobody has taken its place.
    pub(super) fn act_late(&mut self, index: usize) {
        let Some(Late { topology, publisher, effect }) = self.late.get(index) else { return };
        let (topology, publisher, effect) = (*topology, *publisher, effect.clone());
        let outcome = match &effect {
            Effect::Topology(change) => self.change(topology, change),
            Effect::Order(order) => self.publish_order(publisher, order).map(|_| ()),
            _ => Ok(()),
        };
        self.log.note(self.now, || {
            format!("late, by an operator that is gone: {effect:?}: {outcome:?}")
        });
    }

    pub(super) fn rearrange(&mut self, change: &Topology) -> Result<(), Trouble> {
        let session = self.operator.session.as_ref().map(|session| session.topology);
        let client = session.ok_or_else(|| trouble("no session with the broker", false))?;
        self.change(client, change)
    }

    fn change(&mut self, client: ConnectionId, change: &Topology) -> Result<(), Trouble> {
        let refused = |why: String| trouble(&why, false);
        if let Topology::DeleteQueue { name } = change
            && self.fed(&Destination::Queue(name.as_str().into()))
        {
            self.violations.push(format!("{name} is deleted while it is fed"));
        }
        match change {
            Topology::Move { from, to } => self.move_messages(client, from, to)?,
            change => topology::change(&mut self.broker, client, change)
                .map_err(|obstacle| refused(obstacle.to_string()))?,
        }
        self.wake_all();
        Ok(())
    }

    /// Whether what the application's publishers send may come to `place`.
    fn fed(&self, place: &Destination) -> bool {
        self.broker.bindings(place).iter().any(|binding| {
            let source = binding.source.as_str();
            source == EXCHANGE || self.fed(&Destination::Exchange(source.into()))
        })
    }

    fn move_messages(&mut self, client: ConnectionId, from: &str, to: &str) -> Result<(), Trouble> {
        let refused = |refusal: Refusal| trouble(&refusal.to_string(), false);
        if !self.broker.connected(client) {
            return Err(refused(Refusal::ConnectionGone));
        }
        let mover = self.broker.connect(PEER, LABEL);
        let all = moving::move_at_once(&mut self.broker, mover, from, to);
        self.broker.close(mover);
        if all.map_err(refused)? {
            Ok(())
        } else {
            Err(trouble("what is left could not be moved", false))
        }
    }

    /// Sends an order.
    pub(super) fn send(&mut self, order: &Order) -> Result<Outcome, Trouble> {
        let session = self.operator.session.as_ref().map(|session| session.publisher);
        let publisher = session.ok_or_else(|| trouble("no session with the broker", false))?;
        self.publish_order(publisher, order)
    }

    fn publish_order(
        &mut self,
        publisher: ConnectionId,
        order: &Order,
    ) -> Result<Outcome, Trouble> {
        let queue = order.queue();
        let message = Message::Order(Arc::new(order.control.clone()));
        match self.broker.publish(publisher, Publish::one("", &queue, message)) {
            Ok(Published::Arrived(1..)) => {
                let waits = self.broker.queue(&queue).and_then(|it| it.expiry.as_ref());
                match waits.map(|expiry| expiry.after) {
                    Some(after) => self.at(after, Event::Expired(order.pod.clone())),
                    None => self.ordered(&order.pod),
                }
                Ok(Outcome::Done)
            }
            Ok(Published::Blocked) => Ok(Outcome::Unread),
            Ok(Published::Arrived(0) | Published::Pending(_)) => {
                Err(trouble("no such control queue", false))
            }
            Err(refusal) => Err(trouble(&refusal.to_string(), false)),
        }
    }

    /// An order that was not read in time is discarded with its connection, so that it does not
    /// arrive later.
    pub(super) fn take_order_back(&mut self) {
        if let Some(session) = &mut self.operator.session {
            self.broker.close_by_broker(session.publisher);
            session.publisher = self.broker.connect(PEER, LABEL);
        }
    }

    /// Publishers go on, and what was held up arrives.
    pub(super) fn alarm_ends(&mut self) {
        if self.now < self.alarm_until {
            return;
        }
        for (connection, outcome) in self.broker.lift_alarm() {
            if let Ok(Published::Pending(_)) = outcome {
                self.trail_behind(connection);
            }
        }
        self.wake_all();
        self.all_look();
        if std::mem::take(&mut self.operator.unread) {
            self.effect_done(1);
        }
    }

    /// A second migration of the queue: while the first holds the lock it gets nowhere, and between
    /// two of the first one's sessions the preflight must tell it what is going on.
    pub(super) fn second_migration(&mut self) {
        if self.now < self.broker_down_until {
            return;
        }
        let client = self.broker.connect(PEER, "shadow/another");
        let lock = lock_queue(QUEUE);
        let locked = topology::lock(&mut self.broker, client, &[client], "shadow/another", &lock);
        if let Err(refusal) = locked {
            self.log.note(self.now, || format!("the second migration: {refusal}"));
            return self.broker.close(client);
        }
        let touched = self.state().is_some_and(|state| {
            state.phase.plan().is_some() && !state.phase.is_final() && self.disturbed()
        });
        let phase = self.decide_another();
        self.log.note(self.now, || format!("the second migration: {phase:?}"));
        if touched && phase.plan().is_some() {
            self.violations.push("a second migration begins amid the first".to_owned());
        }
        let stays = self.rng.u64(5..100);
        self.at(stays, Event::IntruderLeaves(client));
    }

    /// `Q` is not fed as before, or not consumed by the application itself.
    fn disturbed(&self) -> bool {
        let queue = &self.stage.queue;
        let to = Destination::Queue(queue.clone());
        let own = |process: &Process| process.consumes(queue) && *process.hostname == *SOURCE;
        self.broker.bindings(&to) != [Binding::plain(super::EXCHANGE)]
            || !self.processes.iter().flatten().any(own)
    }

    /// What the protocol decides for another migration, from what is seen now.
    fn decide_another(&self) -> Phase {
        let spec = Spec { uid: "07e40000-0000".to_owned(), ..self.spec.clone() };
        let state = State::new(Time(self.now));
        let habits = self.scenario.habits;
        let seen = |pod: usize| self.pods[pod].seen(self.scenario.owner, habits.remembers);
        let seen = Observation {
            acted: Some(Time(self.now)),
            source: self.pod(SOURCE).map(seen),
            preflight: Some(self.preflight()),
            broker: Some(BrokerView {
                primary: self.broker.counts(QUEUE),
                ..BrokerView::default()
            }),
            ..Observation::default()
        };
        decide(&spec, &self.tempo.settings, &state, &seen, Time(self.now)).state.phase
    }

    /// Whether quorum queues can be asked.
    pub(super) fn blind_queues(&mut self, blind: bool) {
        let queues: Vec<Name> = self.broker.queue_names().cloned().collect();
        for queue in queues {
            self.broker.set_blind(&queue, blind);
        }
    }
}
