//! The operator's part of the world: observe → decide → store → act around the real protocol, with
//! everything that can go wrong between two of its calls.

use std::sync::Arc;

use shadow_protocol::decide::decide;
use shadow_protocol::effect::Effect;
use shadow_protocol::observation::{Archive, Trouble};
use shadow_protocol::phase::{Phase, State};
use shadow_protocol::time::Time;

use super::effects::Outcome;
use super::session::Session;
use super::{Event, World};
use crate::scenario::{CallFault, Fault};

/// How long an order waits while an alarm holds it up.
const PATIENCE: u64 = 150;

/// The operator's process. What it remembers is lost when it crashes.
#[derive(Debug, Default)]
pub(super) struct Operator {
    pub(super) running: bool,
    /// The session with the broker, which holds the lock as long as it lives.
    pub(super) session: Option<Session>,
    /// An alarm holds its order up.
    pub(super) unread: bool,
    /// Everything is done, and the connections are closed.
    pub(super) finished: bool,
    /// Only the latest turn counts.
    turn: u32,
    /// Calls made so far, by all its lives.
    pub(super) calls: u32,
    cached: Option<(Arc<State>, u64)>,
    pub(super) todo: Vec<Effect>,
    pub(super) done: usize,
    pub(super) acted: Option<Time>,
    pub(super) own: bool,
    unanswered: Option<Arc<State>>,
    pub(super) archive: Option<Archive>,
    pub(super) trouble: Option<Trouble>,
    pub(super) failures: u32,
    pub(super) waiting: String,
}

impl Operator {
    pub(super) fn next_step(&mut self) {
        self.todo.clear();
        self.done = 0;
        self.acted = None;
        self.archive = None;
        self.trouble = None;
        self.failures = 0;
    }

    pub(super) fn fail(&mut self, trouble: Trouble) {
        self.failures += 1;
        self.trouble = Some(trouble);
    }

    fn backoff(&self) -> u64 {
        (10 << self.failures.min(5)).min(200)
    }
}

pub(super) fn trouble(message: &str, permanent: bool) -> Trouble {
    Trouble { reason: "Injected".to_owned(), message: message.to_owned(), permanent }
}

impl World {
    pub(super) fn operate_in(&mut self, after: u64) {
        self.operator.turn += 1;
        let turn = self.operator.turn;
        self.at(after, Event::Operate(turn));
    }

    /// Something watched has changed.
    pub(super) fn ring(&mut self) {
        let begun = self.record.state.is_some();
        if begun
            && self.operator.running
            && self.operator.todo.is_empty()
            && !self.operator.finished
        {
            self.operate_in(1);
        }
    }

    pub(super) fn crash(&mut self) {
        let Operator { turn, calls, finished, .. } = self.operator;
        self.log.note(self.now, || "the operator crashes".to_owned());
        self.abandon_session();
        self.operator = Operator { turn, calls, finished, running: true, ..Operator::default() };
        // Now and then for so long that a source that stands still goes on by itself.
        let after = if self.rng.u8(..4) == 0 { 200..2_000 } else { 20..200 };
        let after = self.rng.u64(after);
        self.operate_in(after);
    }

    /// What the plan has for the next call.
    fn call(&mut self) -> Option<CallFault> {
        let number = self.operator.calls;
        self.operator.calls += 1;
        let planned = |fault: &Fault| match *fault {
            Fault::Call(at, fault) if at == number => Some(fault),
            _ => None,
        };
        let fault = self.scenario.faults.iter().find_map(planned);
        if let Some(fault) = fault {
            self.log.note(self.now, || format!("FAULT {fault:?} at call {number}"));
        }
        fault
    }

    pub(super) fn operate(&mut self, turn: u32) {
        if turn != self.operator.turn || !self.operator.running || self.operator.finished {
            return;
        }
        if std::mem::take(&mut self.operator.unread) {
            self.take_order_back();
            self.not_done(trouble("no answer to an order: the broker blocks publishers", false));
        } else if self.operator.todo.len() > self.operator.done {
            self.act();
        } else {
            self.cycle();
        }
    }

    fn cycle(&mut self) {
        self.refresh();
        let Some((state, _)) = self.operator.cached.clone() else {
            let state = State::new(Time(self.now));
            self.store(state, Vec::new());
            return;
        };
        let seen = self.observe(&state);
        let decision = decide(&self.spec, &self.tempo.settings, &state, &seen, Time(self.now));
        if decision.state != *state {
            self.store(decision.state, decision.effects);
            return;
        }
        if self.operator.waiting != decision.waiting {
            self.operator.waiting.clone_from(&decision.waiting);
            self.log.note(self.now, || format!("waits for {}", decision.waiting));
        }
        if decision.effects.is_empty() {
            let wake = decision.wake.unwrap_or(1_000).max(1);
            let troubled = self.operator.trouble.is_some();
            let wake = if troubled { wake.max(self.operator.backoff()) } else { wake };
            self.operate_in(wake);
        } else {
            self.operator.todo = decision.effects;
            self.act();
        }
    }

    /// Nobody else writes the record, so what is cached is what is stored, unless an answer was
    /// lost.
    fn refresh(&mut self) {
        if self.operator.cached.is_none()
            && let Some(state) = &self.record.state
        {
            self.operator.cached = Some((state.clone(), self.record.version));
        }
    }

    fn store(&mut self, state: State, effects: Vec<Effect>) {
        let fault = self.call();
        if fault == Some(CallFault::CrashBefore) {
            return self.crash();
        }
        if fault == Some(CallFault::Fail) {
            self.operator.fail(trouble("the status was not written", false));
            let after = self.operator.backoff();
            return self.operate_in(after);
        }
        let known = self.operator.cached.as_ref().map_or(0, |(_, version)| *version);
        if known != self.record.version {
            // A conflict: what this process remembers is worthless, unless the state is its own.
            let unanswered = self.operator.unanswered.take();
            if unanswered.is_some() && unanswered == self.record.state {
                self.operator.cached = unanswered.map(|state| (state, self.record.version));
                self.operator.next_step();
                self.operator.own = true;
                return self.operate_in(1);
            }
            let Operator { turn, calls, .. } = self.operator;
            let session = self.operator.session.take();
            self.operator = Operator { turn, calls, session, running: true, ..Operator::default() };
            return self.operate_in(1);
        }
        self.log.note(self.now, || step_of(&state.phase));
        if let Some(watch) = &mut self.watch {
            watch.stored(self.now, &state.phase);
        }
        let state = Arc::new(state);
        if let Some(before) = self.record.state.replace(state.clone()) {
            self.gone_on(before.phase.step(), state.phase.step());
        }
        self.record.version += 1;
        self.at(1, Event::Reconcile);
        match fault {
            Some(CallFault::CrashAfter) => return self.crash(),
            Some(CallFault::LostAnswer) => {
                self.operator.unanswered = self.record.state.clone();
                self.operator.fail(trouble("no answer from the API server", false));
                let after = self.operator.backoff();
                return self.operate_in(after);
            }
            _ => {}
        }
        self.operator.cached = Some((state, self.record.version));
        self.operator.next_step();
        self.operator.own = true;
        self.operator.todo = effects;
        self.operate_in(self.tempo.write);
        if self.operator.todo.is_empty() {
            self.operator.acted = Some(Time(self.now));
        }
    }

    /// The next effect of this step.
    fn act(&mut self) {
        let Some(state) = self.operator.cached.as_ref().map(|(state, _)| state.clone()) else {
            return self.crash();
        };
        if !state.phase.is_final() && !self.take_lock() {
            self.operator.todo.clear();
            let after = self.operator.backoff();
            return self.operate_in(after);
        }
        let Some(effect) = self.operator.todo.get(self.operator.done).cloned() else {
            self.operator.acted = Some(Time(self.now));
            self.operator.todo.clear();
            return self.operate_in(1);
        };
        let fault = self.call();
        if fault == Some(CallFault::CrashBefore) {
            return self.crash();
        }
        if fault == Some(CallFault::Fail) {
            return self.not_done(trouble(&format!("{} failed", effect.name()), false));
        }
        let mut outcome = self.perform_as_mutated(&effect, &state.phase);
        if fault == Some(CallFault::Twice) {
            outcome = self.perform_as_mutated(&effect, &state.phase);
        }
        match fault {
            Some(CallFault::CrashAfter) => return self.crash(),
            Some(CallFault::LostAnswer) => {
                return self.not_done(trouble(&format!("{}: no answer", effect.name()), false));
            }
            _ => {}
        }
        match outcome {
            Ok(Outcome::Done) => self.effect_done(self.tempo.call),
            Ok(Outcome::Copied(archive)) => {
                self.operator.archive = Some(archive);
                self.effect_done(self.scenario.checkpoint);
            }
            Ok(Outcome::Unread) => {
                self.operator.unread = true;
                self.operate_in(PATIENCE);
            }
            Err(trouble) => self.not_done(trouble),
        }
    }

    /// The effect is done; the next one comes `after` so many milliseconds.
    pub(super) fn effect_done(&mut self, after: u64) {
        self.operator.done += 1;
        if self.operator.done == self.operator.todo.len() {
            self.operator.acted = Some(Time(self.now));
            self.operator.trouble = None;
            self.operator.failures = 0;
            self.operator.todo.clear();
        }
        self.operate_in(after);
    }

    fn not_done(&mut self, trouble: Trouble) {
        self.log.note(self.now, || trouble.message.clone());
        self.operator.fail(trouble);
        // Observed and decided anew before it is tried again; what is done stays done.
        self.operator.todo.clear();
        let after = self.operator.backoff();
        self.operate_in(after);
    }
}

/// The phase and its step, in short.
pub(super) fn step_of(phase: &Phase) -> String {
    let step = match phase {
        Phase::Checkpointing { step, .. } => format!("{step:?}"),
        Phase::Restoring { step, .. } => format!("{step:?}"),
        Phase::Finalizing { step, .. } => format!("{step:?}"),
        Phase::Unwinding { step, reached, failure, .. } => {
            format!("undo {step:?} from {reached:?} ({})", failure.reason)
        }
        Phase::Failed { failure, .. } => format!("{}: {}", failure.reason, failure.message),
        _ => String::new(),
    };
    format!("=> {} {step}", phase.name().as_str())
}
