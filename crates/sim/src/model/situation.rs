//! One situation: everything that matters for what can happen next.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use shadow_protocol::effect::Effect;
use shadow_protocol::observation::Archive;
use shadow_protocol::phase::{Phase, State, SwitchStep};
use shadow_protocol::time::Time;

use super::application::{Habits, Ledger, Pod, Process};
use super::clock;
use super::wire::{Place, Wire};

pub const SOURCE: &str = "a";
pub const TARGET: &str = "a-shadow";

/// One of the two copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Who {
    /// The pod that moves, or who took its place.
    Source,
    /// The restored copy.
    Target,
}

impl Who {
    pub fn pod(self) -> &'static str {
        match self {
            Who::Source => SOURCE,
            Who::Target => TARGET,
        }
    }
}

/// What an operator remembers: lost when it crashes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operator {
    /// It has itself stored the present step.
    pub own: bool,
    /// When it had carried out all effects of the present step.
    pub acted: Option<Time>,
    /// Effects still to be carried out, in order.
    pub todo: VecDeque<Effect>,
    /// The kubelet's answer.
    pub archive: Option<Archive>,
}

/// The migration's state as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub state: State,
    /// Of the state's text: equal for equal states.
    digest: u64,
}

impl Record {
    pub fn new(mut state: State) -> Arc<Self> {
        clock::forget(&mut state);
        let mut hasher = std::hash::DefaultHasher::new();
        // A state that has no text has the text of its debug form.
        match serde_json::to_string(&state) {
            Ok(text) => text.hash(&mut hasher),
            Err(_) => format!("{state:?}").hash(&mut hasher),
        }
        Arc::new(Self { state, digest: hasher.finish() })
    }
}

/// Everything there is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// Mode `Park`.
    pub park: bool,
    pub habits: Habits,
    pub wire: Arc<Wire>,
    /// Routed and not arrived, by publisher and queue, in order.
    pub trailing: BTreeMap<(u8, Place), VecDeque<u8>>,
    /// What trails has done so for a tick.
    pub outlasting: bool,
    /// Something has trailed for longer than the ebb: it may have been overtaken.
    pub late: bool,
    /// How many messages each publisher has published.
    pub published: Vec<u8>,
    pub source: Option<Pod>,
    pub target: Option<Pod>,
    /// The source has died by itself; what it had applied and acknowledged by then.
    pub bereaved: Option<Ledger>,
    pub operator: Operator,
    pub record: Arc<Record>,
    /// The user wants it undone.
    pub abort: bool,
    /// How often the operator may still crash.
    pub crashes: u8,
    /// How much else may still go wrong.
    pub misfortunes: u8,
}

impl Hash for Situation {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.wire.digest([SOURCE, TARGET], hasher);
        let held = [Who::Source, Who::Target].map(|who| self.process(who)).into_iter().flatten();
        held.for_each(|process| process.held(&self.wire).for_each(|body| body.hash(hasher)));
        (self.park, &self.habits, &self.trailing, self.outlasting, self.late, &self.published)
            .hash(hasher);
        (&self.source, &self.target, &self.bereaved, self.abort, self.crashes, self.misfortunes)
            .hash(hasher);
        let Operator { own, acted, todo, archive } = &self.operator;
        let archive = archive.as_ref().map(|archive| &archive.path);
        (own, acted, todo.len(), archive, self.record.digest).hash(hasher);
    }
}

impl Situation {
    pub fn phase(&self) -> &Phase {
        &self.record.state.phase
    }

    pub fn pod(&self, who: Who) -> Option<&Pod> {
        match who {
            Who::Source => self.source.as_ref(),
            Who::Target => self.target.as_ref(),
        }
    }

    pub fn pod_mut(&mut self, who: Who) -> Option<&mut Pod> {
        match who {
            Who::Source => self.source.as_mut(),
            Who::Target => self.target.as_mut(),
        }
    }

    pub fn process(&self, who: Who) -> Option<&Process> {
        self.pod(who)?.process.as_ref()
    }

    /// Lets a process do something at the broker.
    pub fn with<T>(
        &mut self,
        who: Who,
        act: impl FnOnce(&mut Process, &mut Wire) -> T,
    ) -> Option<T> {
        let pod = match who {
            Who::Source => self.source.as_mut(),
            Who::Target => self.target.as_mut(),
        };
        let process = pod?.process.as_mut()?;
        Some(act(process, Arc::make_mut(&mut self.wire)))
    }

    /// A pod is gone, and its process with it.
    pub fn remove(&mut self, who: Who) {
        self.with(who, |process, wire| process.end(wire));
        match who {
            Who::Source => self.source = None,
            Who::Target => self.target = None,
        }
    }

    /// The source dies: its state is what it has acknowledged.
    pub fn bereave(&mut self) {
        let process = self.process(Who::Source);
        self.bereaved = process.map(|process| process.memory.ledger.clone());
        self.misfortunes -= 1;
    }

    /// A tick passes.
    pub fn tick(&mut self) {
        if let Some(acted) = &mut self.operator.acted {
            clock::tick_acted(acted);
        }
        let mut state = self.record.state.clone();
        clock::tick(&mut state);
        self.record = Record::new(state);
    }

    /// The container of a pod begins to run.
    pub fn start(&mut self, who: Who) {
        let habits = self.habits;
        let Some(image) = self.pod(who).map(|pod| pod.image.clone()) else { return };
        let process = Process::wake(image, who.pod(), habits, Arc::make_mut(&mut self.wire));
        if let Some(pod) = self.pod_mut(who) {
            pod.container += 1;
            pod.process = process;
        }
    }

    /// A message is published: it arrives at once, unless others of its publisher are under way
    /// there, or it `trails`.
    pub fn publish(&mut self, publisher: u8, trails: bool) {
        let number = self.published[usize::from(publisher)];
        self.published[usize::from(publisher)] += 1;
        for place in self.wire.route() {
            if trails || self.trailing.contains_key(&(publisher, place)) {
                self.trailing.entry((publisher, place)).or_default().push_back(number);
            } else {
                Arc::make_mut(&mut self.wire).arrive(place, publisher, number);
            }
        }
    }

    /// The oldest trailing message of a publisher arrives in a queue.
    pub fn arrive(&mut self, publisher: u8, place: Place) {
        let Some(under_way) = self.trailing.get_mut(&(publisher, place)) else { return };
        if let Some(number) = under_way.pop_front() {
            self.late |= self.outlasting;
            Arc::make_mut(&mut self.wire).arrive(place, publisher, number);
        }
        self.trailing.retain(|_, under_way| !under_way.is_empty());
        self.outlasting &= !self.trailing.is_empty();
    }

    /// The source is being deleted, or the order to do so is under way.
    pub fn replacing(&self) -> bool {
        matches!(self.phase(), Phase::Finalizing { step: SwitchStep::Replace(None), .. })
    }

    /// There is no way back any more, as far as the record says; at `Hand` nobody knows.
    pub fn committed(&self) -> bool {
        matches!(
            self.phase(),
            Phase::Completed { .. }
                | Phase::Finalizing {
                    step: SwitchStep::Hand
                        | SwitchStep::Open(Some(_))
                        | SwitchStep::Overlap(Some(_))
                        | SwitchStep::Replace(Some(_))
                        | SwitchStep::Retire(_)
                        | SwitchStep::Remove(..),
                    ..
                }
        )
    }
}
