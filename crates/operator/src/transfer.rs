//! How a checkpoint gets to the target node.
//!
//! | `transferMode` | agent on the source's node | |
//! |---|---|---|
//! | Registry | yes | it pushes the image |
//! | | no | a Job on that node does |
//! | Direct | yes | it sends the archive to the target's agent |
//! | | no | a Job on that node does |
//!
//! In the second hop of an identity swap both nodes are the same one: its agent offers the archive where
//! it is.

use std::time::Duration;

use http::Method;
use kube::ResourceExt;
use kube::api::{DeleteParams, PostParams, PropagationPolicy};
use sha2::{Digest as _, Sha256};
use shadow_checkpoint::agent::wire::{
    Expected, ForgetOrder, LoadOrder, Origin, PushOrder, SendOrder, Sender,
};
use shadow_protocol::observation::{Job, Trouble};
use shadow_protocol::phase::{Phase, Plan, Reached};
use shadow_protocol::spec::Transfer;

use crate::act::{Hands, Outcome, created, kube_trouble, not_found};
use crate::agents::{self, Agents, Moving, Party};
use crate::observe::chain;
use crate::secret;
use crate::transfer_job::{Destination, JobPlan, job_name, short, transfer_job};

/// For all that is removed when a transfer is over.
const CLEANING: Duration = Duration::from_secs(5);
/// By how much a node's clock may be behind, in seconds.
const CLOCKS_DIFFER: i64 = 60;

impl Moving {
    /// In the protocol's terms.
    pub(crate) fn seen(&self) -> Job {
        match self.outcome.get() {
            Some(Ok(arrived)) => Job::Done { image: arrived.image.clone(), bytes: arrived.bytes },
            Some(Err(why)) => Job::Failed(why.clone()),
            None => Job::Running,
        }
    }
}

fn hop(plan: &Plan) -> u8 {
    if plan.base().is_some() { 2 } else { 1 }
}

fn no_agent(node: &str) -> Trouble {
    Trouble {
        reason: "AgentMissing".to_owned(),
        message: format!(
            "no ready ms2m-agent on node {node}; see DaemonSet ms2m-system/ms2m-agent"
        ),
        permanent: false,
    }
}

impl Hands<'_> {
    /// Starts the transfer. Where a Job has been made, it stays with that.
    pub(crate) async fn start_transfer(&self) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let there = self.cluster.job(&self.namespace(), &job_name(self.migration)).is_some();
        let sender = self.agent_on(&plan.source_node).filter(|_| !there);
        match (plan.transfer, sender) {
            (Transfer::Registry, Some((agents, source))) => self.push(agents, source).await,
            (Transfer::Registry, None) => self.create_job(None).await,
            (Transfer::Direct, sender) => {
                let (agents, target) =
                    self.agent_on(&plan.target_node).ok_or_else(|| no_agent(&plan.target_node))?;
                match sender {
                    Some((_, source)) if source == target => self.load(agents, target).await,
                    Some((_, source)) => self.send(agents, source, target).await,
                    None => self.send_by_job(agents, target.1).await,
                }
            }
        }
    }

    fn agent_on(&self, node: &str) -> Option<(&Agents, Party)> {
        Some((self.agents?, (node.to_owned(), agents::address(self.cluster, node)?)))
    }

    /// Unique for each hop.
    fn transfer_name(&self, hop: u8) -> String {
        format!("{}-{hop}", self.id().to_ascii_lowercase())
    }

    /// The pod whose checkpoint is carried, whoever has taken its place since.
    fn carried_pod<'p>(&'p self, plan: &'p Plan) -> &'p str {
        plan.base().map_or(&self.migration.spec.source_pod, |base| &base.plan.target_pod)
    }

    fn origin(&self, plan: &Plan, pod: &str) -> Origin {
        Origin {
            namespace: self.namespace(),
            pod: pod.to_owned(),
            container: plan.container.clone(),
        }
    }

    /// Its tag is unique per migration and hop, readable in the registry, and within 128 characters.
    fn image_name(&self, plan: &Plan, pod: &str) -> String {
        let pod: String = pod.chars().take(100).collect();
        format!("{}:{pod}-{}", plan.repository, self.id())
    }

    fn id(&self) -> String {
        short(&self.migration.uid().unwrap_or_default())
    }

    fn archive(&self) -> Result<String, Trouble> {
        let archive = self.phase.taken().map(|taken| taken.archive.path.clone());
        archive.ok_or_else(|| Trouble {
            reason: "NoArchive".to_owned(),
            message: "no checkpoint archive to transfer".to_owned(),
            permanent: true,
        })
    }

    async fn push(&self, agents: &Agents, source: Party) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let order = PushOrder {
            transfer: self.transfer_name(hop(plan)),
            tar_path: self.archive()?,
            origin: self.origin(plan, self.carried_pod(plan)),
            image_ref: self.image_name(plan, self.carried_pod(plan)),
            docker_config: self.docker_config().await?,
        };
        let ring = self.cluster.ring();
        agents.move_archive(vec![source], "/registry-push", order, ring).await.map(Outcome::Moving)
    }

    async fn docker_config(&self) -> Result<Option<String>, Trouble> {
        let Some(name) = &self.options.registry_secret else { return Ok(None) };
        let namespace = self.namespace();
        let key = ".dockerconfigjson";
        let found = secret::text(&self.cluster.client, &namespace, name, key).await;
        found.map(Some).map_err(|error| Trouble {
            reason: "RegistrySecretInvalid".to_owned(),
            message: format!("Secret {namespace}/{name} key {key}: {}", chain(&error)),
            permanent: !error.is_passing(),
        })
    }

    async fn load(&self, agents: &Agents, target: Party) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let order = LoadOrder {
            transfer: self.transfer_name(hop(plan)),
            tar_path: self.archive()?,
            origin: self.origin(plan, self.carried_pod(plan)),
        };
        let ring = self.cluster.ring();
        agents.move_archive(vec![target], "/local-load", order, ring).await.map(Outcome::Moving)
    }

    /// The token is in the hands of operator and sender only; the target's agent knows its digest.
    async fn send(
        &self,
        agents: &Agents,
        source: Party,
        target: Party,
    ) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let token = agents.sender_token().await?;
        let sha256 = format!("{:x}", Sha256::digest(token.as_bytes()));
        self.expect(agents, &target.1, Sender::Token { sha256 }).await?;
        let order = SendOrder {
            transfer: self.transfer_name(hop(plan)),
            tar_path: self.archive()?,
            origin: self.origin(plan, self.carried_pod(plan)),
            agent: target.1.clone(),
            token,
        };
        let (parties, ring) = (vec![source, target], self.cluster.ring());
        agents.move_archive(parties, "/send", order, ring).await.map(Outcome::Moving)
    }

    async fn send_by_job(&self, agents: &Agents, target: String) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let prefix = format!("{}-", job_name(self.migration));
        let sender = Sender::Pod { namespace: self.namespace(), prefix };
        self.expect(agents, &target, sender).await?;
        let authorities = agents.authorities().await?;
        let transfer = self.transfer_name(hop(plan));
        self.create_job(Some(Destination { agent: target, authorities, transfer })).await
    }

    async fn expect(&self, agents: &Agents, target: &str, sender: Sender) -> Result<(), Trouble> {
        let plan = self.plan()?;
        let expected = Expected { origin: self.origin(plan, self.carried_pod(plan)), sender };
        let path = format!("/transfers/{}", self.transfer_name(hop(plan)));
        agents.order(target, Method::PUT, &path, &expected).await.map(|_: serde_json::Value| ())
    }

    async fn create_job(&self, agent: Option<Destination>) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let job = transfer_job(&JobPlan {
            migration: self.migration,
            node: &plan.source_node,
            archive: &self.archive()?,
            reference: &self.image_name(plan, self.carried_pod(plan)),
            agent: agent.as_ref(),
            container: &plan.container,
            image: &self.options.transfer_image,
            keep: self.options.keep_checkpoints,
            attempts_within: self.options.protocol.deadlines.checkpoint / 1_000,
            registry_secret: self.options.registry_secret.as_deref(),
        });
        let name = job.name_any();
        created(self.jobs().create(&PostParams::default(), &job).await, "create Job", &name)
    }

    /// The transfer is over, or given up: nothing of it stays on either node or in the registry, unless it
    /// is to be kept.
    pub(crate) async fn end_transfer(&self) -> Result<Outcome, Trouble> {
        let name = job_name(self.migration);
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match self.jobs().delete(&name, &params).await {
            Err(error) if !not_found(&error) => {
                return Err(kube_trouble("delete Job", &name, &error));
            }
            _ => {}
        }
        let plan = self.plan()?;
        let mut carried = vec![(hop(plan), self.carried_pod(plan), &plan.source_node)];
        // The second hop was given up, and the first is on its way back.
        if matches!(self.phase, Phase::Unwinding { reached: Reached::Hopped, .. }) {
            carried.push((2, plan.target_pod.as_str(), &plan.target_node));
        }
        let all =
            carried.into_iter().map(|(hop, pod, source)| self.clean_up(plan, hop, pod, source));
        if tokio::time::timeout(CLEANING, futures::future::join_all(all)).await.is_err() {
            let seconds = CLEANING.as_secs();
            tracing::warn!(seconds, "not everything of the transfer was removed in time");
        }
        Ok(Outcome::Done)
    }

    /// Nobody waits for it for long: agents forget by themselves, and no migration hangs on a registry.
    async fn clean_up(&self, plan: &Plan, hop: u8, pod: &str, source: &str) {
        let keep = self.options.keep_checkpoints;
        let order = ForgetOrder {
            transfer: self.transfer_name(hop),
            origin: self.origin(plan, pod),
            since: if keep { i64::MAX } else { self.begun() },
        };
        let target = (plan.target_node != source).then_some(plan.target_node.as_str());
        let forgets = std::iter::once(source).chain(target).map(|node| self.forget(node, &order));
        let removal = async {
            if !keep && plan.transfer == Transfer::Registry {
                self.remove_image(&self.image_name(plan, pod)).await;
            }
        };
        futures::future::join(futures::future::join_all(forgets), removal).await;
    }

    /// Also by an agent that is not ready: it may be able to do that much.
    async fn forget(&self, node: &str, order: &ForgetOrder) {
        let Some(agents) = self.agents else { return };
        if let Some(address) = agents::last_address(self.cluster, node) {
            agents.forget(&address, order).await;
        } else {
            // Where a Job did its work, it has cleaned up itself.
            tracing::info!(node, "no agent to remove what is left of the transfer");
        }
    }

    async fn remove_image(&self, image: &str) {
        let removed = match self.docker_config().await {
            Ok(auth) => self.registry.remove(image, auth.as_deref()).await,
            Err(trouble) => Err(trouble.message),
        };
        if let Err(why) = removed {
            tracing::warn!(image, why, "the checkpoint image stays");
        }
    }

    /// When the migration began, in seconds since 1970: no archive of it is older, by a clock that may be
    /// behind ours.
    fn begun(&self) -> i64 {
        let status = self.migration.status.as_ref();
        let begun = status.and_then(|status| status.start_time.as_ref()?.parse().ok());
        begun.map_or(i64::MAX, |begun: jiff::Timestamp| begun.as_second() - CLOCKS_DIFFER)
    }
}
