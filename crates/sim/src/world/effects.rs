//! What the operator does to the cluster and, through its session, to the broker.

use shadow_protocol::effect::Effect;
use shadow_protocol::observation::{Archive, Trouble};
use shadow_protocol::phase::{Phase, Plan};

use super::operator::trouble;
use super::{Event, Job, World};

/// What came of an effect.
pub(super) enum Outcome {
    /// It is done.
    Done,
    /// The checkpoint is taken.
    Copied(Archive),
    /// The order is sent and held up by an alarm.
    Unread,
}

impl World {
    pub(super) fn perform_as_mutated(
        &mut self,
        effect: &Effect,
        phase: &Phase,
    ) -> Result<Outcome, Trouble> {
        let names = phase.plan().map_or(&self.stage.names, |plan| &plan.names);
        let effect = match self.mutant {
            Some(mutant) => mutant.effect(names, phase, effect.clone()),
            None => Some(effect.clone()),
        };
        match effect {
            Some(effect) => self.perform(&effect, phase),
            None => Ok(Outcome::Done),
        }
    }

    fn perform(&mut self, effect: &Effect, phase: &Phase) -> Result<Outcome, Trouble> {
        self.log.note(self.now, || describe(effect));
        self.performed.insert(effect.name());
        self.check_alone(effect);
        let plan = phase.plan();
        match effect {
            Effect::Lock | Effect::DeletePrePull | Effect::PullCheckpoint | Effect::Announce => {}
            Effect::Topology(change) => self.rearrange(change)?,
            Effect::Order(order) => return self.send(order),
            Effect::Checkpoint => return self.checkpoint(plan).map(Outcome::Copied),
            Effect::PrePull => self.pulled_at = Some(self.now + self.tempo.pull),
            Effect::CreateJob => self.create_job(phase),
            Effect::DeleteJob => self.job = None,
            Effect::CreateTarget => self.create_target(phase),
            Effect::DeleteTarget => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.delete_pod(target, 20);
                    self.let_go(target);
                }
            }
            Effect::OpenGate => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.pods[target].gate = Some(true);
                    self.ring();
                }
            }
            Effect::PreferSource | Effect::UnpreferSource => {
                if let Some(source) = plan.and_then(|plan| self.source_of(plan)) {
                    self.pods[source].preferred = *effect == Effect::PreferSource;
                }
            }
            Effect::Adopt => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.pods[target].owned = true;
                    self.at(1, Event::Reconcile);
                }
            }
            Effect::Pin => self.pin(plan),
            Effect::Unpin => self.unpin(),
            Effect::DeleteSource | Effect::Vacate | Effect::MakeRoom => {
                let origin = *effect == Effect::MakeRoom;
                let plan = plan.map(|plan| if origin { plan.origin() } else { plan });
                if let Some(source) = plan.and_then(|plan| self.source_of(plan)) {
                    let grace = self.rng.u64(self.tempo.grace.clone());
                    self.delete_pod(source, grace);
                }
            }
            Effect::ScaleDown { .. } | Effect::ScaleUp { .. } => {
                self.smaller = matches!(effect, Effect::ScaleDown { .. });
                self.at(1, Event::Reconcile);
            }
            Effect::Hold => self.held = true,
            Effect::Release => {
                self.held = false;
                self.at(1, Event::Reconcile);
            }
            Effect::Admit { node } => self.admit(node, phase)?,
            Effect::Retire => {
                if let Some(target) = plan.and_then(|plan| self.target(plan)) {
                    self.let_go(target);
                }
            }
            Effect::CloseBroker => {
                self.close_session();
                self.operator.finished = true;
                self.publishing = false;
                self.wake_all();
            }
        }
        Ok(Outcome::Done)
    }

    fn checkpoint(&mut self, plan: Option<&Plan>) -> Result<Archive, Trouble> {
        let source = plan.and_then(|plan| self.source_of(plan));
        let process = source.and_then(|source| self.pods[source].process);
        let found = process.and_then(|process| self.processes[process].as_mut());
        let (Some(process), Some(found)) = (process, found) else {
            let unpowered = source.is_some_and(|source| self.pods[source].unpowered);
            let why = if unpowered { "no route to the kubelet" } else { "no such container" };
            return Err(trouble(why, !unpowered));
        };
        found.frozen = true;
        self.checkpoints.push(found.memory.clone());
        if std::mem::take(&mut self.truncates) {
            self.truncated.insert(self.checkpoints.len() - 1);
        }
        self.at(self.scenario.checkpoint, Event::Thaw(process));
        let path = (self.checkpoints.len() - 1).to_string();
        Ok(Archive { path, millis: self.scenario.checkpoint })
    }

    fn create_job(&mut self, phase: &Phase) {
        let path = phase.taken().and_then(|taken| taken.archive.path.parse().ok());
        if let (None, Some(checkpoint)) = (&self.job, path) {
            let fails =
                std::mem::take(&mut self.push_fails) || self.truncated.contains(&checkpoint);
            let done_at = self.now + self.scenario.transfer;
            self.job = Some(Job { done_at, checkpoint, fails });
        }
    }

    fn create_target(&mut self, phase: &Phase) {
        let (Some(plan), Some(image)) = (phase.plan(), phase.image()) else { return };
        if self.pod(&plan.target_pod).is_none() {
            let checkpoint = image.reference.parse().ok();
            let (name, node) = (plan.target_pod.clone(), plan.target_node.clone());
            let pod = self.create_pod(&name, &node, checkpoint);
            (self.pods[pod].ours, self.pods[pod].gate) = (true, Some(false));
            self.ring();
        }
    }

    /// The copy, as its owner's own.
    fn admit(&mut self, node: &str, phase: &Phase) -> Result<(), Trouble> {
        if self.now < self.admission_silent_until {
            return Err(trouble("admission does not answer", false));
        }
        let (Some(plan), Some(image)) = (phase.plan(), phase.image()) else { return Ok(()) };
        match self.pod(&plan.target_pod) {
            Some(there) if self.pods[there].ours => {}
            Some(_) => return Err(trouble("a pod of that name exists", false)),
            None => {
                let checkpoint = image.reference.parse().ok();
                let pod = self.create_pod(&plan.target_pod, node, checkpoint);
                let found = &mut self.pods[pod];
                (found.owned, found.ours, found.kept) = (true, true, true);
                found.gate = Some(false);
                self.ring();
            }
        }
        Ok(())
    }

    pub(super) fn target(&self, plan: &Plan) -> Option<usize> {
        self.pod(&plan.target_pod).filter(|&pod| self.pods[pod].ours)
    }

    pub(super) fn source_of(&self, plan: &Plan) -> Option<usize> {
        let same = |pod: &usize| format!("pod-{}", self.pods[*pod].uid) == plan.source_uid;
        self.pod(&plan.source_pod).filter(same)
    }
}

fn describe(effect: &Effect) -> String {
    match effect {
        Effect::Topology(change) => format!("   {change:?}"),
        Effect::Order(order) => format!("   to {}: {:?}", order.pod, order.control),
        other => format!("   {}", other.name()),
    }
}
