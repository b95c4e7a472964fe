//! What the operator sees before it decides.

use shadow_broker::memory::core::Destination;
use shadow_broker::memory::topology::{self, Obstacle};
use shadow_broker::memory::{proofs, survey};
use shadow_protocol::broker::Survey;
use shadow_protocol::decide::interest;
use shadow_protocol::names::control_queue;
use shadow_protocol::observation::{
    BrokerView, Heir, Interest, Job as SeenJob, Node, Observation, PodsOfSet, PrePull, Preflight,
    Rollout, Turn,
};
use shadow_protocol::pending::{Called, target_name};
use shadow_protocol::phase::{Evidence, Plan, State};

use super::operator::{step_of, trouble};
use super::session::Session;
use super::{Job, NODES, QUEUE, SOURCE, World};
use crate::scenario::OwnerKind;

impl World {
    pub(super) fn observe(&mut self, state: &State) -> Observation {
        let wanted = interest(&state.phase);
        let plan = state.phase.plan();
        let broker = if state.phase.is_final() || !self.take_lock() {
            None
        } else {
            self.look_at_broker(plan, wanted)
        };
        let name = plan.map_or(SOURCE, |plan| plan.source_pod.as_str());
        let target = plan
            .map_or_else(|| target_name(Called::plainly(SOURCE)), |plan| plan.target_pod.clone());
        let seen =
            |pod: usize| self.pods[pod].seen(self.scenario.owner, self.scenario.habits.remembers);
        let mut observation = Observation {
            turn: Turn::default(),
            acted: self.operator.acted,
            own: self.operator.own,
            trouble: self.operator.trouble.clone(),
            source: self.pod(name).map(seen),
            standby: plan.and_then(Plan::standby).and_then(|first| self.source_of(first)).map(seen),
            heir: plan.filter(|_| wanted.heir).and_then(|plan| self.heir(plan)),
            pinned: wanted.going && self.pinned,
            target: self.pod(&target).filter(|&pod| self.pods[pod].ours).map(seen),
            preflight: wanted.preflight.then(|| self.preflight()),
            job: self.job.as_ref().filter(|_| wanted.job).map(|job| self.seen_job(job)),
            prepull: self
                .pulled_at
                .filter(|_| wanted.prepull)
                .map(|at| if self.now >= at { PrePull::Done } else { PrePull::Running }),
            pulled: wanted.pulled.then_some(PrePull::Done),
            archive: self.operator.archive.clone(),
            broker,
        };
        if let Some(mutant) = self.mutant {
            mutant.see(&state.phase, &mut observation);
        }
        observation
    }

    fn seen_job(&self, job: &Job) -> SeenJob {
        if self.now < job.done_at {
            SeenJob::Running
        } else if job.fails {
            SeenJob::Failed("the registry did not take it".to_owned())
        } else {
            SeenJob::Done { image: job.checkpoint.to_string(), bytes: 1 }
        }
    }

    /// The broker's part, as `shadow_operator` asks for it.
    fn look_at_broker(&mut self, plan: Option<&Plan>, wanted: Interest) -> Option<BrokerView> {
        let seen = if self.scenario.alone() {
            Ok(BrokerView::default())
        } else {
            let mut session = self.operator.session.take()?;
            let seen = self.ask_broker(&mut session, plan, wanted);
            self.operator.session = Some(session);
            seen
        };
        match seen {
            Ok(view) => {
                if self.operator.acted.is_some() {
                    self.operator.trouble = None;
                    self.operator.failures = 0;
                }
                Some(view)
            }
            Err(obstacle) => {
                self.operator.fail(trouble(&obstacle.to_string(), false));
                None
            }
        }
    }

    fn ask_broker(
        &mut self,
        session: &mut Session,
        plan: Option<&Plan>,
        wanted: Interest,
    ) -> Result<BrokerView, Obstacle> {
        let names = plan.map_or(&self.stage.names, |plan| &plan.names);
        let (broker, client) = (&mut self.broker, session.topology);
        let mut counts = |asked: bool, queue: &str| {
            if asked { topology::count(broker, client, queue) } else { Ok(None) }
        };
        let mut view = BrokerView {
            primary: counts(wanted.primary, &names.primary)?,
            s1: counts(wanted.s1, &names.s1)?,
            s2: counts(wanted.s2, &names.s2)?,
            park: counts(wanted.park, &names.park)?,
            park2: counts(wanted.park2, &names.park2)?,
            wake: counts(wanted.wake, &names.wake)?,
            ..BrokerView::default()
        };
        if let Some(plan) = plan.filter(|_| wanted.target_control) {
            view.target_control = counts(true, &control_queue(&plan.target_pod))?;
        }
        if wanted.bindings {
            view.bindings = Some(broker.bindings(&Destination::Queue(self.stage.queue.clone())));
        }
        if let Some(plan) = plan.filter(|_| wanted.connected) {
            let lives =
                |wanted: &str| !survey::connections(broker, |_, name| name == wanted).is_empty();
            view.connected = Some(plan.connections().all(lives));
        }
        if wanted.consumers {
            view.consumers = Some(survey::consumers(broker, &names.primary));
        }
        if wanted.primary_quiet {
            let stay = plan.map_or(0, |plan| plan.consumers.saturating_sub(1));
            view.primary_quiet = Some(proofs::quiet(broker, client, &names.primary, stay)?);
        }
        if wanted.primary_empty {
            view.primary_empty = Some(session.proofs.empty(broker, client, &names.primary)?);
        }
        if wanted.s1_empty {
            view.s1_empty = Some(session.proofs.empty(broker, client, &names.s1)?);
        }
        view.totals = wanted.totals.then(|| Evidence {
            primary: survey::totals(broker, &names.primary),
            s1: survey::totals(broker, &names.s1),
            s2: survey::totals(broker, &names.s2),
        });
        Ok(view)
    }

    /// As `shadow_operator::observe::heir`.
    fn heir(&self, plan: &Plan) -> Option<Heir> {
        let candidates = self.pods.iter().rev().filter(|pod| pod.alive() && !pod.ours);
        candidates
            .filter(|pod| match self.scenario.owner {
                OwnerKind::Deployment => pod.owned,
                _ => pod.name == plan.source_pod,
            })
            .find_map(|pod| {
                if !pod.runs() {
                    return None;
                }
                let heir = Heir {
                    pod: pod.name.clone(),
                    uid: format!("pod-{}", pod.uid),
                    container_id: format!("container-{}", pod.container?),
                    listens: self.broker.queue(&control_queue(&pod.name)).is_some(),
                };
                let itself =
                    heir.uid == plan.source_uid && heir.container_id == plan.source_container_id;
                (!itself).then_some(heir)
            })
    }

    pub(super) fn preflight(&self) -> Preflight {
        let node = |name: &&str| Node {
            name: (*name).to_owned(),
            schedulable: true,
            ready: true,
            problems: Vec::new(),
            full: false,
        };
        Preflight {
            nodes: NODES.iter().map(node).collect(),
            name_taken: false,
            registry: Some(Ok(())),
            survey: Some(Survey {
                service_rate: self.tempo.service_rate,
                ..survey::survey(&self.broker, QUEUE, &control_queue(SOURCE))
            }),
            set: Some(PodsOfSet { first: 0, replicas: 1, deletes_claims: false }),
            rollout: Some(Rollout { replicas: 1, paused: false, complete: true }),
            claims: Some(Vec::new()),
            copy: Some(Ok(())),
            checks: Some(Ok(())),
            // As soon woken as can be.
            memory_bytes: Some(0),
            unready_siblings: 0,
        }
    }

    /// What it waits for, for the verdict on a run without an end.
    pub(super) fn waiting_for(&self) -> String {
        let step = self.record.state.as_ref().map(|state| step_of(&state.phase));
        format!("{}, waiting for {}", step.unwrap_or_default(), self.operator.waiting)
    }
}
