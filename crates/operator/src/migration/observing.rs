//! What a migration sees before it decides: the cluster's part from the stores, the broker's part
//! asked for as far as the present state needs it.

use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use shadow_protocol::decide::interest;
use shadow_protocol::names::{Names, control_queue, lock_queue};
use shadow_protocol::observation::{self, BrokerView, Heir, Observation, Trouble, Turn};
use shadow_protocol::pending::{Called, target_name};
use shadow_protocol::phase::{Phase, Pin, Plan, State};
use shadow_protocol::spec::Spec;

use super::Migration;
use crate::agents::Moving;
use crate::decide as mapping;
use crate::janitor::ledger::Known;
use crate::observe::{self, broker_trouble, chain};
use crate::pin;
use crate::prepull::{self, Wanted};
use crate::transfer_job::short;

/// The source and the pod that stands by.
type Sources = (Option<observation::Pod>, Option<observation::Pod>);

impl Migration {
    pub(super) async fn observe(&mut self, spec: &Spec, state: &State) -> Observation {
        let wanted = interest(&state.phase);
        let namespace = self.object.namespace().unwrap_or_default();
        let context = self.context.clone();
        let cluster = &context.cluster;
        let pod = |pod_name: &str| {
            let found = cluster.pod(&namespace, pod_name)?;
            Some(observe::pod(cluster, &found, spec.container.as_deref(), &self.object))
        };
        let plan = state.phase.plan();
        // What an agent had been told went with its pod: the step begins again, with the new one.
        if self.memory.moving.as_ref().is_some_and(|moving| moving.is_orphaned(cluster)) {
            self.memory.next_step();
        }
        let mut source = pod(plan.map_or(&spec.source_pod, |plan| &plan.source_pod));
        let called = source.as_ref().map(|source| source.called(&spec.source_pod));
        let target = target_name(called.unwrap_or(Called::plainly(&spec.source_pod)));
        let target = pod(plan.map_or(target.as_str(), |plan| &plan.target_pod));
        // It bears the target's name, and is none of ours.
        let standby = plan.and_then(Plan::standby);
        let mut standby = standby
            .and_then(|first| pod(&first.source_pod).filter(|found| found.uid == first.source_uid));
        let job_name = crate::transfer_job::job_name(&self.object);
        let job = wanted
            .job
            .then(|| cluster.job(&namespace, &job_name))
            .flatten()
            .map(|job| observe::job(cluster, &job))
            .or_else(|| self.memory.moving.as_ref().map(Moving::seen));
        let pull = |asked: bool, image: Wanted| {
            let pod_name = asked.then(|| prepull::pod_name(&self.object, image))?;
            cluster.pod(&namespace, &pod_name).map(|pod| prepull::progress(&pod))
        };
        let (base, checkpoint) =
            (pull(wanted.prepull, Wanted::Base), pull(wanted.pulled, Wanted::Checkpoint));
        let mut broker = self.look_at_broker(spec, state).await;
        // A pod that is deleted is marked before its process hears of it, but a watch may be behind:
        // only who asks now knows why a connection has ended.
        let cut_off = broker.as_ref().is_some_and(|view| view.connected == Some(false));
        if let Some(plan) = plan.filter(|_| wanted.going || cut_off) {
            match self.sources_now(spec, plan).await {
                Ok(found) => (source, standby) = found,
                // Nothing is decided without.
                Err(trouble) => {
                    self.memory.fail(trouble);
                    broker = None;
                }
            }
        }
        let mut pinned = false;
        if let Some(plan) = plan.filter(|plan| wanted.going && plan.pin == Pin::Yes) {
            match pin::is_pinned(&cluster.client, &namespace, plan, &spec.uid).await {
                Ok(found) => pinned = found,
                Err(trouble) => {
                    self.memory.fail(trouble);
                    broker = None;
                }
            }
        }
        let seen = source.as_ref();
        let preflight = if wanted.preflight {
            let found = cluster.pod(&namespace, &spec.source_pod);
            Some(self.preflight(spec, plan, found.as_deref().zip(seen), target.is_some()).await)
        } else {
            None
        };
        let heir = match plan {
            Some(plan) if wanted.heir => self.heir(&namespace, plan).await,
            _ => None,
        };
        Observation {
            turn: Turn::default(),
            acted: self.memory.acted,
            own: self.memory.own,
            trouble: self.trouble(state),
            source,
            standby,
            heir,
            target: target.filter(|pod| pod.ours),
            pinned,
            preflight,
            job,
            prepull: base,
            pulled: checkpoint,
            archive: self.memory.archive.clone(),
            broker,
        }
    }

    /// What is in the way, or keeps the stores from showing it.
    fn trouble(&self, state: &State) -> Option<Trouble> {
        // On the way back a trouble before all is done means more: see `unwind::stuck`.
        let undoing = matches!(state.phase, Phase::Unwinding { .. }) && self.memory.acted.is_none();
        let blind = || self.context.cluster.blind().filter(|_| !undoing);
        self.memory.trouble.clone().or_else(blind)
    }

    /// The source, and the pod that stands by, as the API server has them now.
    async fn sources_now(&self, spec: &Spec, plan: &Plan) -> Result<Sources, Trouble> {
        let namespace = self.object.namespace().unwrap_or_default();
        let cluster = &self.context.cluster;
        let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &namespace);
        let get = async |name: &str| {
            let found = api.get_opt(name).await.map_err(|error| Trouble {
                reason: "ApiUnavailable".to_owned(),
                message: format!("read pod {namespace}/{name}: {}", chain(&error)),
                permanent: false,
            })?;
            let container = spec.container.as_deref();
            Ok(found.map(|pod| observe::pod(cluster, &pod, container, &self.object)))
        };
        let source = get(&plan.source_pod).await?;
        let standby = match plan.standby() {
            Some(first) => get(&first.source_pod).await?,
            None => None,
        };
        let same =
            |pod: &observation::Pod| plan.standby().is_some_and(|it| it.source_uid == pod.uid);
        Ok((source, standby.filter(same)))
    }

    async fn heir(&self, namespace: &str, plan: &Plan) -> Option<Heir> {
        let mut heir = observe::heir(&self.context.cluster, namespace, plan)?;
        let session = self.memory.session.as_deref()?;
        // A failure shows in the broker's part of the observation.
        let control = session.counts(&control_queue(&heir.pod)).await;
        heir.listens = matches!(control, Ok(Some(_)));
        Some(heir)
    }

    /// The broker's part of the observation, with nothing in it where there is no queue. Before the
    /// lock is held nothing is asked; a lost connection is opened again and the present step begins
    /// anew.
    async fn look_at_broker(&mut self, spec: &Spec, state: &State) -> Option<BrokerView> {
        if state.phase.is_final() {
            return None;
        }
        if matches!(state.phase, Phase::Pending) && self.memory.acted.is_none() {
            return None;
        }
        let found = match &spec.queue {
            Some(queue) => self.ask_broker(spec, state, queue).await,
            None => Ok(BrokerView::default()),
        };
        match found {
            Ok(view) => {
                if self.memory.acted.is_some() {
                    self.memory.trouble = None;
                    self.memory.failures = 0;
                }
                self.memory.broker = Some(view.clone());
                Some(view)
            }
            Err(error) => {
                let trouble = broker_trouble(&error);
                tracing::warn!(message = trouble.message, "broker");
                self.memory.fail(trouble);
                None
            }
        }
    }

    async fn ask_broker(
        &mut self,
        spec: &Spec,
        state: &State,
        queue: &str,
    ) -> Result<BrokerView, shadow_broker::Error> {
        self.connect(queue).await?;
        let Some(session) = self.memory.session.as_deref() else {
            return Ok(BrokerView::default());
        };
        let wanted = interest(&state.phase);
        if wanted.preflight {
            let pod = state.phase.plan().map_or(&spec.source_pod, |plan| &plan.target_pod);
            let survey = session.survey(queue, &control_queue(pod)).await?;
            let there = survey.queue.is_some();
            self.memory.survey = Some(survey);
            if !there {
                return Ok(BrokerView::default());
            }
        }
        let plan = state.phase.plan();
        let names = plan.map_or_else(|| Names::new(queue, &spec.uid), |plan| plan.names.clone());
        observe::broker(session, &names, plan, wanted).await
    }

    /// Makes sure that there is a living session that holds the lock.
    pub(super) async fn connect(&mut self, queue: &str) -> Result<(), shadow_broker::Error> {
        if self.memory.session.as_ref().is_some_and(|session| session.alive()) {
            return Ok(());
        }
        if let Some(dead) = self.memory.session.take() {
            dead.close().await;
            self.memory.next_step();
        }
        let target = mapping::broker_target(&self.context.cluster.client, &self.object).await?;
        if let Some(known) = Known::by(&self.object, target.clone()) {
            self.context.ledger.remember(known);
        }
        // With it, so that another one of the same name is not taken for a successor.
        let id = short(&self.object.uid().unwrap_or_default());
        let namespace = self.object.namespace().unwrap_or_default();
        let name = format!("{namespace}/{}/{id}", self.object.name_any());
        let session = self.context.connector.open(&target, &name).await?;
        if let Err(error) = session.lock(&lock_queue(queue)).await {
            session.close().await;
            return Err(error);
        }
        self.memory.session = Some(session);
        Ok(())
    }
}
