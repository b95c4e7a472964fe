//! What goes wrong in the world at its own time.

use shadow_broker::memory::core::ConsumeOptions;
use shadow_protocol::phase::{Attempt, Phase, RestoreStep, State, SwitchStep};
use shadow_protocol::step::Step;

use super::{Event, SOURCE, World};
use crate::scenario::{Fault, WorldFault};

/// The source is being deleted, or the order to do so is under way.
pub(crate) fn replacing(state: &State) -> bool {
    matches!(
        state.phase,
        Phase::Finalizing { step: SwitchStep::Replace(_), .. }
            | Phase::Restoring { step: RestoreStep::Vacate, .. }
    )
}

/// There is no way back any more.
pub(crate) fn committed(state: &State) -> bool {
    matches!(
        state.phase,
        Phase::Completed { .. }
            | Phase::Replaying { commit: Some(_), .. }
            | Phase::Restoring {
                step: RestoreStep::Prepare(Attempt { commit: Some(_), .. })
                    | RestoreStep::Admit(Attempt { commit: Some(_), .. })
                    | RestoreStep::Retry(Attempt { commit: Some(_), .. }),
                ..
            }
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

/// Handoff under way, or on its way back.
pub(crate) fn under_way(state: &State) -> bool {
    matches!(state.phase, Phase::Checkpointing { .. } | Phase::Unwinding { .. })
}

/// The image of a second hop is in place, and its copy has not run yet.
pub(crate) fn checkpointed(state: &State) -> bool {
    let hop = [Step::HopPrepare, Step::HopAdmit, Step::HopRetry];
    hop.contains(&state.phase.step())
}

impl World {
    /// The record has gone from one step to another: what is planned for then will happen.
    pub(super) fn gone_on(&mut self, from: Step, to: Step) {
        let first = self.transitions.iter().all(|&(_, known)| known != to);
        self.transitions.insert((from, to));
        if to == Step::Replace {
            self.replaced();
        }
        for (index, fault) in self.scenario.faults.clone().into_iter().enumerate() {
            if let Fault::Step(step, after, _) = fault
                && first
                && step == to
            {
                self.at(after, Event::Fault(index));
            }
        }
    }

    pub(super) fn fault(&mut self, index: usize) {
        let planned = self.scenario.faults.get(index);
        let Some(&(Fault::World(_, fault) | Fault::Step(_, _, fault))) = planned else { return };
        if self.operator.finished || self.scenario.alone() && fault.is_at_broker() {
            return;
        }
        self.log.note(self.now, || format!("FAULT {fault:?}"));
        match fault {
            WorldFault::SourceRestarts => self.source_dies(true),
            WorldFault::SourceGone => self.source_dies(false),
            WorldFault::TargetEnds => self.target_dies(true),
            WorldFault::TargetGone => self.target_dies(false),
            WorldFault::BrokerRestarts => self.broker_restarts(),
            WorldFault::ApplicationsCutOff => self.cut_off(),
            WorldFault::OperatorCrashes => self.crash(),
            WorldFault::SourceNodeGone => self.node_gone(0),
            WorldFault::TargetNodeGone => self.node_gone(1),
            WorldFault::ArchiveTruncated => self.truncates = true,
            WorldFault::PushFails => self.push_fails = true,
            WorldFault::RestoreFails => self.restore_fails = true,
            WorldFault::AdmissionSilent => {
                let lasts = self.rng.u64(5..900);
                self.admission_silent_until = self.admission_silent_until.max(self.now + lasts);
            }
            WorldFault::Flood => {
                self.flood_until = self.now + 100;
                self.flooded = true;
            }
            WorldFault::Intruder => self.intrude(),
            WorldFault::Alarm => self.raise_alarm(),
            WorldFault::SessionLost => self.lose_session(),
            WorldFault::SecondMigration => self.second_migration(),
            WorldFault::QueuesBlind => {
                self.blind_queues(true);
                let lasts = self.rng.u64(5..300);
                self.at(lasts, Event::QueuesSee);
            }
            WorldFault::Transaction => {
                // It trails whatever cut comes meanwhile.
                self.flooded = true;
                let lasts = self.rng.u64(10..280);
                self.transact(lasts);
            }
            WorldFault::Abort => {
                self.spec.abort = true;
                self.ring();
            }
            WorldFault::Delete => {
                self.spec.deleted = true;
                self.ring();
            }
        }
    }

    /// The source as the migration knows it, while it is to be kept.
    fn source(&self) -> Option<usize> {
        let committed = self.committed();
        (0..self.pods.len()).find(|&pod| {
            let found = &self.pods[pod];
            let named = found.name == SOURCE && !found.ours;
            named && found.alive() && found.process.is_some() && !committed
        })
    }

    fn source_dies(&mut self, restarts: bool) {
        let Some(pod) = self.source() else { return };
        self.bereave(pod);
        if restarts {
            if let Some(process) = self.pods[pod].process.take() {
                self.kill(process);
            }
            self.pods[pod].probed = false;
            self.at(self.scenario.start, Event::Started(pod));
            self.ring();
        } else {
            self.pods[pod].terminating = true;
            self.gone(pod);
        }
    }

    /// A fresh process goes on where this one's acknowledgements end.
    pub(super) fn bereave(&mut self, pod: usize) {
        self.bereaved = true;
        self.last_words(pod);
        let process = self.pods[pod].process.and_then(|process| self.processes[process].as_ref());
        if let Some(process) = process {
            self.base = process.acknowledged();
        }
    }

    /// A copy is about to die. With the source on its way out, or about to be, it is the workload's
    /// own crash.
    pub(super) fn mourn(&mut self, copy: usize) {
        let source_gone = !self.pods.iter().any(|pod| pod.uid == 1 && pod.powered());
        let copies = self.pods.iter().filter(|pod| pod.ours && pod.powered()).count();
        // What has run is never restored again.
        let begun = |state: &State| {
            let plan = state.phase.plan();
            plan.is_some_and(|plan| plan.target_pod == self.pods[copy].name)
        };
        let restorable = |state: &State| checkpointed(state) && !begun(state);
        let alone = source_gone && copies == 1 && !self.state().is_some_and(restorable);
        if self.committed() || alone || self.state().is_some_and(replacing) {
            self.forgiven = true;
            self.bereave(copy);
        }
    }

    fn target_dies(&mut self, ends: bool) {
        let copies: Vec<usize> =
            (0..self.pods.len()).filter(|&p| self.pods[p].ours && self.pods[p].powered()).collect();
        // A second hop has two.
        let Some(&pod) = copies.get(self.rng.usize(..copies.len().max(1))) else { return };
        self.mourn(pod);
        if ends {
            self.end(pod);
        } else {
            self.pods[pod].terminating = true;
            self.gone(pod);
        }
    }

    fn broker_restarts(&mut self) {
        self.broker_down_until = self.now + self.rng.u64(10..300);
        self.forget_unconfirmed();
        self.broker.restart();
        self.cut_off();
    }

    /// Whoever goes to its own queue, or binds it again, when it connects defeats the cuts: it is
    /// noticed and undone, but what it took in between is applied twice.
    fn cut_off(&mut self) {
        let habits = self.scenario.habits;
        let touched = self.state().is_some_and(|state| state.phase.plan().is_some());
        self.strayed |= touched && (habits.rebinds || !habits.remembers);
        self.overtaken |= self.state().is_some_and(under_way);
        // The one hole that is left: a forgetful source, cut off while it is on its way out.
        self.forgiven |= !habits.remembers && self.state().is_some_and(replacing);
        for process in 0..self.processes.len() {
            if let Some(found) = self.processes[process].as_mut() {
                found.disconnect(&mut self.broker);
                let after = self.rng.u64(1..=self.scenario.habits.reconnect);
                self.at(after, Event::Connect(process));
            }
        }
    }

    fn raise_alarm(&mut self) {
        let lasts = self.rng.u64(5..400);
        self.alarm_until = self.alarm_until.max(self.now + lasts);
        self.broker.raise_alarm();
        self.at(lasts, Event::AlarmEnds);
    }

    /// Somebody else consumes the queue, takes a message and gives it back when it leaves.
    fn intrude(&mut self) {
        if self.now < self.broker_down_until {
            return;
        }
        let intruder = self.broker.connect("10.0.4.1", "intruder");
        let options = ConsumeOptions { prefetch: 1, ..ConsumeOptions::default() };
        if let Ok(consumer) = self.broker.consume(intruder, &self.stage.queue, options) {
            self.intruded = true;
            let stays = self.rng.u64(5..100);
            self.at(stays, Event::IntruderLeaves(intruder));
            if let (Ok(Some(taken)), true) = (self.broker.take(consumer, 1), self.rng.bool()) {
                // It is its own again at once, unless somebody else is quicker.
                let _ = self.broker.nack(consumer, taken.tag, false);
            }
        }
    }
}
