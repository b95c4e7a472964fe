//! What migrations have made on a vhost, by the management API's lists. Of other people's objects only the
//! names are read.

use std::collections::BTreeSet;

use serde::Deserialize;
use shadow_protocol::janitor::{Belongings, Link};
use shadow_protocol::names::{exchange_of, listener, side_queue_of};

use super::session::RabbitSession;
use super::topology::Listed;
use crate::Error;

/// Only that, and nothing of the statistics.
const NAMES: &str = "columns=name&disable_stats=true";

#[derive(Deserialize)]
struct Named {
    name: String,
}

impl RabbitSession {
    pub(super) async fn list_belongings(&self) -> Result<Belongings, Error> {
        let exchanges = self.named("exchanges", |name| exchange_of(name).is_some()).await?;
        let ours = |name: &str| side_queue_of(name).is_some() || listener(name).is_some();
        let queues = self.named("queues", ours).await?;
        let mut links = BTreeSet::new();
        let vhost = self.management.vhost();
        for exchange in &exchanges {
            for end in ["source", "destination"] {
                let path = ["exchanges", vhost, exchange, "bindings", end];
                let listed: Vec<Listed> = self.management.list(&path).await?;
                links.extend(listed.into_iter().map(link));
            }
        }
        for queue in queues.iter().filter(|queue| side_queue_of(queue).is_some()) {
            let path = ["queues", vhost, queue, "bindings"];
            let listed: Vec<Listed> = self.management.list(&path).await?;
            links.extend(listed.into_iter().map(link));
        }
        let links = links.into_iter().filter(|link| !link.binding.source.is_empty()).collect();
        Ok(Belongings { exchanges, queues, links })
    }

    async fn named(
        &self,
        kind: &str,
        ours: impl Fn(&str) -> bool,
    ) -> Result<BTreeSet<String>, Error> {
        let all: Option<Vec<Named>> =
            self.management.get(&[kind, self.management.vhost()], NAMES).await?;
        let names = all.unwrap_or_default().into_iter().map(|it| it.name);
        Ok(names.filter(|name| ours(name)).collect())
    }
}

fn link(listed: Listed) -> Link {
    let (to, is_queue) = (listed.destination.clone(), listed.destination_type == "queue");
    Link { binding: listed.binding(), to, is_queue }
}
