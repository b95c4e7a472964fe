//! Looks for what is left at the brokers, and removes it, with the queue's lock in hand.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::{Api, Resource as _, ResourceExt as _};
use shadow_api::StatefulMigration;
use shadow_broker::{Error, Session, Target};
use shadow_protocol::broker::{Emptiness, Topology};
use shadow_protocol::janitor::{Belongings, Chores, Facts, Held, chores, dead_queues, is_suspect};
use shadow_protocol::names::{control_queue, lock_queue};
use tokio::time::{Duration, sleep};

use super::Janitor;
use super::ledger::{Known, queue};
use crate::decide as mapping;
use crate::observe::chain;

/// So many looks, at the most: feed, exchanges, queues, and one that finds nothing.
const LOOKS: usize = 5;

/// Why a queue was not tidied up.
#[derive(Debug, thiserror::Error)]
enum Unfinished {
    #[error(transparent)]
    Broker(#[from] Error),
    #[error(transparent)]
    Cluster(#[from] kube::Error),
}

impl Janitor {
    pub(super) async fn tidy_brokers(&mut self) -> Result<(), kube::Error> {
        let migrations = self.migrations().await?;
        self.learn(&migrations).await;
        let known = self.context.ledger.known();
        let mut targets: Vec<&Target> = Vec::new();
        for Known { target, .. } in &known {
            if !targets.contains(&target) {
                targets.push(target);
            }
        }
        for target in targets {
            let queues: Vec<&Known> = known.iter().filter(|it| it.target == *target).collect();
            let tidied = self.tidy_broker(target, &queues).await;
            if let Err(error) = tidied {
                let what = "look for what migrations have left at a broker";
                self.say("JanitorFailed", format!("{what}: {}", chain(&error)), None).await;
            }
        }
        Ok(())
    }

    /// Where the queues of the migrations are that exist; a Secret is read once for all of them.
    async fn learn(&self, migrations: &[StatefulMigration]) {
        let mut read: BTreeMap<String, Target> = BTreeMap::new();
        for migration in migrations {
            let Some(config) = &migration.spec.message_queue_config else { continue };
            let key = format!(
                "{} {:?} {:?} {:?}",
                migration.namespace().unwrap_or_default(),
                config.broker_secret_ref,
                config.broker_url,
                config.management_url
            );
            if !read.contains_key(&key) {
                let client = &self.context.cluster.client;
                match mapping::broker_target(client, migration).await {
                    Ok(target) => drop(read.insert(key.clone(), target)),
                    Err(error) => {
                        let migration = migration.name_any();
                        tracing::debug!(migration, error = chain(&error), "its broker is unknown");
                    }
                }
            }
            let target = read.get(&key).cloned();
            if let Some(known) = target.and_then(|target| Known::by(migration, target)) {
                self.context.ledger.remember(known);
            }
        }
    }

    /// A look without any lock first: a queue at which there is nothing to do is not disturbed.
    async fn tidy_broker(&mut self, target: &Target, queues: &[&Known]) -> Result<(), Unfinished> {
        let session = self.context.connector.open(target, &self.name).await?;
        let untidy = self.untidy(session.as_ref(), queues).await;
        session.close().await;
        for known in untidy? {
            let session = self.context.connector.open(target, &self.name).await?;
            let tidied = self.tidy_queue(session.as_ref(), known).await;
            session.close().await;
            match tidied {
                // A migration is at work there.
                Err(Unfinished::Broker(Error::Locked { .. })) => {}
                other => other?,
            }
        }
        Ok(())
    }

    async fn untidy<'a>(
        &mut self,
        session: &dyn Session,
        queues: &[&'a Known],
    ) -> Result<Vec<&'a Known>, Unfinished> {
        let mut untidy = Vec::new();
        for known in queues {
            let Chores { feed, remove, .. } = self.look(session, known).await?;
            if !feed.is_empty() || !remove.is_empty() {
                untidy.push(*known);
            }
        }
        Ok(untidy)
    }

    async fn tidy_queue(&mut self, session: &dyn Session, known: &Known) -> Result<(), Unfinished> {
        let queue = &known.queue;
        session.lock(&lock_queue(queue)).await?;
        // Who has been told before to go to a side queue may still be on its way.
        let linger = Duration::from_millis(self.context.options.protocol.linger_ms);
        sleep(linger).await;
        for _ in 0..LOOKS {
            let chores = self.look(session, known).await?;
            if chores.feed.is_empty() && chores.remove.is_empty() {
                return Ok(());
            }
            if chores.feed.is_empty() {
                apply(session, queue, &chores.remove).await?;
            } else {
                apply(session, queue, &chores.feed).await?;
                // Deliveries trail an unbind, and a publisher whose message is on its way to a quorum queue
                // that is deleted loses its connection.
                sleep(linger).await;
            }
        }
        Ok(())
    }

    /// What there is to do for a queue, which is told of as far as it is left alone.
    async fn look(&mut self, session: &dyn Session, known: &Known) -> Result<Chores, Unfinished> {
        let queue = &known.queue;
        let found = session.belongings().await?;
        let unheard = self.unheard(known, &found).await?;
        let living = self.living().await?.ids();
        if !is_suspect(queue, &found, &living) && unheard.is_empty() {
            return Ok(Chores::default());
        }
        let migrations = self.migrations().await?;
        if self.is_busy(queue, &migrations) {
            return Ok(Chores::default());
        }
        let asked = dead_queues(queue, &found, &living).chain(&unheard);
        let held = held(session, asked).await?;
        let there = session.counts(queue).await?.is_some();
        let chores = chores(&Facts {
            primary: queue,
            there,
            found: &found,
            living: &living,
            held: &held,
            unheard: &unheard,
        });
        for warning in &chores.warnings {
            let about = newest(queue, &migrations).map(|it| it.object_ref(&()));
            self.say(warning.reason(), warning.to_string(), about.as_ref()).await;
        }
        Ok(chores)
    }

    /// A migration that is not over is of this queue: what it makes, and whom it talks to, is its own.
    fn is_busy(&self, primary: &str, migrations: &[StatefulMigration]) -> bool {
        let listed: BTreeSet<String> =
            migrations.iter().filter_map(StatefulMigration::uid).collect();
        let running = self.context.ledger.running();
        let mut unlisted = running.iter().filter(|(uid, _)| !listed.contains(*uid));
        let over = |it: &StatefulMigration| {
            let state = mapping::stored(it).ok().flatten();
            state.is_some_and(|state| state.phase.is_final())
        };
        unlisted.any(|(_, of)| of.as_deref() == Some(primary))
            || migrations.iter().any(|it| queue(it) == Some(primary) && !over(it))
    }

    /// The control queues of the pods that a migration has had to do with, and that are no more.
    async fn unheard(
        &self,
        known: &Known,
        found: &Belongings,
    ) -> Result<BTreeSet<String>, kube::Error> {
        let mut unheard = BTreeSet::new();
        for pod in &known.pods {
            let control = control_queue(pod);
            if !found.queues.contains(&control) {
                continue;
            }
            let named = ListParams::default().fields(&format!("metadata.name={pod}"));
            let pods: Api<Pod> = Api::all(self.context.cluster.client.clone());
            if pods.list(&named).await?.items.is_empty() {
                unheard.insert(control);
            }
        }
        Ok(unheard)
    }
}

async fn apply(session: &dyn Session, queue: &str, changes: &[Topology]) -> Result<(), Error> {
    for change in changes {
        session.apply(change).await?;
        tracing::info!(queue, ?change, "left of a migration: done");
    }
    Ok(())
}

/// What is in the queues, as far as they exist. Only of one that nobody consumes and in which nothing waits
/// a proof is asked for.
async fn held(
    session: &dyn Session,
    queues: impl Iterator<Item = &String>,
) -> Result<BTreeMap<String, Held>, Error> {
    let mut all = BTreeMap::new();
    for queue in queues {
        let Some(counts) = session.counts(queue).await? else { continue };
        let bare = counts.ready == 0 && counts.consumers == 0;
        let empty = bare && session.emptiness(queue).await? == Emptiness::Proved;
        let held = Held { ready: counts.ready, consumers: counts.consumers, empty };
        all.insert(queue.clone(), held);
    }
    Ok(all)
}

fn newest<'a>(primary: &str, migrations: &'a [StatefulMigration]) -> Option<&'a StatefulMigration> {
    let of = migrations.iter().filter(|it| queue(it) == Some(primary));
    of.max_by_key(|it| it.creation_timestamp())
}
