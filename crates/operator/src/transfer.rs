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
use shadow_protocol::phase::Plan;
use shadow_protocol::spec::Transfer;

use crate::act::{Hands, Outcome, created, kube_trouble, not_found};
use crate::agents::{self, Agents, Moving};
use crate::observe::chain;
use crate::secret;
use crate::transfer_job::{Destination, JobPlan, job_name, short, transfer_job};

/// For the removal of an image from its registry.
const REMOVAL: Duration = Duration::from_secs(4);

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
            (Transfer::Registry, Some((agents, address))) => self.push(agents, &address).await,
            (Transfer::Registry, None) => self.create_job(None).await,
            (Transfer::Direct, sender) => {
                let (agents, target) =
                    self.agent_on(&plan.target_node).ok_or_else(|| no_agent(&plan.target_node))?;
                match sender {
                    Some((_, source)) if source == target => self.load(agents, &target).await,
                    Some((_, source)) => self.send(agents, &source, target).await,
                    None => self.send_by_job(agents, target).await,
                }
            }
        }
    }

    fn agent_on(&self, node: &str) -> Option<(&Agents, String)> {
        Some((self.agents?, agents::address(self.cluster, node)?))
    }

    /// Unique for each hop.
    fn transfer_name(&self, plan: &Plan) -> String {
        let hop = if plan.base().is_some() { "2" } else { "1" };
        format!("{}-{hop}", self.id().to_ascii_lowercase())
    }

    fn origin(&self, plan: &Plan) -> Origin {
        Origin {
            namespace: self.namespace(),
            pod: plan.source_pod.clone(),
            container: plan.container.clone(),
        }
    }

    /// Its tag is unique per migration and hop, readable in the registry, and within 128 characters.
    fn image_name(&self, plan: &Plan) -> String {
        let pod: String = plan.source_pod.chars().take(100).collect();
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

    async fn push(&self, agents: &Agents, address: &str) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let order = PushOrder {
            transfer: self.transfer_name(plan),
            tar_path: self.archive()?,
            origin: self.origin(plan),
            image_ref: self.image_name(plan),
            docker_config: self.docker_config().await?,
        };
        let ring = self.cluster.ring();
        agents.move_archive(address, "/registry-push", order, ring).await.map(Outcome::Moving)
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

    async fn load(&self, agents: &Agents, address: &str) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let order = LoadOrder {
            transfer: self.transfer_name(plan),
            tar_path: self.archive()?,
            origin: self.origin(plan),
        };
        let ring = self.cluster.ring();
        agents.move_archive(address, "/local-load", order, ring).await.map(Outcome::Moving)
    }

    /// The token is in the hands of operator and sender only; the target's agent knows its digest.
    async fn send(
        &self,
        agents: &Agents,
        source: &str,
        target: String,
    ) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let token = agents.sender_token().await?;
        let sha256 = format!("{:x}", Sha256::digest(token.as_bytes()));
        self.expect(agents, &target, Sender::Token { sha256 }).await?;
        let order = SendOrder {
            transfer: self.transfer_name(plan),
            tar_path: self.archive()?,
            origin: self.origin(plan),
            agent: target,
            token,
        };
        let ring = self.cluster.ring();
        agents.move_archive(source, "/send", order, ring).await.map(Outcome::Moving)
    }

    async fn send_by_job(&self, agents: &Agents, target: String) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let prefix = format!("{}-", job_name(self.migration));
        let sender = Sender::Pod { namespace: self.namespace(), prefix };
        self.expect(agents, &target, sender).await?;
        let authorities = agents.authorities().await?;
        let transfer = self.transfer_name(plan);
        self.create_job(Some(Destination { agent: target, authorities, transfer })).await
    }

    async fn expect(&self, agents: &Agents, target: &str, sender: Sender) -> Result<(), Trouble> {
        let plan = self.plan()?;
        let expected = Expected { origin: self.origin(plan), sender };
        let path = format!("/transfers/{}", self.transfer_name(plan));
        agents.order(target, Method::PUT, &path, &expected).await.map(|_: serde_json::Value| ())
    }

    async fn create_job(&self, agent: Option<Destination>) -> Result<Outcome, Trouble> {
        let plan = self.plan()?;
        let job = transfer_job(&JobPlan {
            migration: self.migration,
            node: &plan.source_node,
            archive: &self.archive()?,
            reference: &self.image_name(plan),
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
        let keep = self.options.keep_checkpoints;
        let order = ForgetOrder {
            transfer: self.transfer_name(plan),
            origin: self.origin(plan),
            since: if keep { i64::MAX } else { self.begun() },
        };
        let mut nodes = vec![&plan.source_node];
        nodes.extend((plan.target_node != plan.source_node).then_some(&plan.target_node));
        let forgets =
            nodes.into_iter().filter_map(|node| self.agent_on(node)).map(|(agents, address)| {
                let order = &order;
                async move { agents.forget(&address, order).await }
            });
        futures::future::join_all(forgets).await;
        if !keep && plan.transfer == Transfer::Registry {
            self.remove_image(&self.image_name(plan)).await;
        }
        Ok(Outcome::Done)
    }

    /// No migration waits for a registry that does not let anything be removed.
    async fn remove_image(&self, image: &str) {
        let removing = async {
            let auth = self.docker_config().await.map_err(|trouble| trouble.message)?;
            self.registry.remove(image, auth.as_deref()).await
        };
        let removed = tokio::time::timeout(REMOVAL, removing).await;
        let late = || Err(format!("no answer within {} s", REMOVAL.as_secs()));
        if let Err(why) = removed.unwrap_or_else(|_| late()) {
            tracing::warn!(image, why, "the checkpoint image stays");
        }
    }

    /// When the migration began, in seconds since 1970: no archive of it is older.
    fn begun(&self) -> i64 {
        let status = self.migration.status.as_ref();
        let begun = status.and_then(|status| status.start_time.as_ref()?.parse().ok());
        begun.map_or(i64::MAX, |begun: jiff::Timestamp| begun.as_second())
    }
}
