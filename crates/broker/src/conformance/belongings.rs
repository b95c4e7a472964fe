//! What a migration has made is found by its names, with all that leads to it and from it.

use std::collections::BTreeSet;

use futures::FutureExt as _;
use shadow_protocol::broker::{Binding, QueueType, Topology};
use shadow_protocol::janitor::{Belongings, Link, is_suspect};
use shadow_protocol::names::{Names, control_queue};

use super::plant::{Feed, Plant};
use super::{Case, Failure, Outcome, Stage, ensure};

/// As it is in the names of this case only.
const ID: &str = "be10n91n95";

pub(super) fn cases() -> Vec<Case> {
    vec![Case { name: "belongings", run: |stage| belongings(stage).boxed() }]
}

async fn belongings(stage: Stage) -> Outcome {
    let mut plant = Plant::build(stage, &QueueType::Classic, Feed::Topic).await?;
    plant.names = Names::new(&plant.names.primary, ID);
    let names = plant.names.clone();
    let control = control_queue(&plant.stage.name("pod"));
    plant.stage.rig.remove(&[&control], &[]).await?;
    plant.remove().await?;
    ensure(ours(&plant).await? == Belongings::default(), || "nothing is there yet".to_owned())?;
    plant.install().await?;
    plant.feed_both(true).await?;
    let like = names.primary.clone();
    plant.apply(Topology::DeclareControlQueue { name: control.clone(), like }).await?;
    let found = plant.session.belongings().await?;
    ensure(found.queues.contains(&control), || format!("{control} is not in {found:?}"))?;
    let (found, expected) = (ours(&plant).await?, expected(&plant));
    ensure(found == expected, || format!("found {found:?} instead of {expected:?}"))?;
    let living = |id: &str| BTreeSet::from([id.to_owned()]);
    let owned = !is_suspect(&names.primary, &found, &living(ID));
    let left = is_suspect(&names.primary, &found, &living("another"));
    ensure(owned && left, || "whose it is does not count".to_owned())?;
    plant.remove().await?;
    ensure(ours(&plant).await? == Belongings::default(), || "something is left".to_owned())?;
    plant.apply(Topology::DeleteQueue { name: control }).await?;
    plant.clear().await?;
    Ok(format!("{} bindings", expected.links.len()))
}

/// Without what other cases have made.
async fn ours(plant: &Plant) -> Result<Belongings, Failure> {
    let mut found = plant.session.belongings().await?;
    let names = &plant.names;
    found.exchanges.retain(|name| names.exchanges().contains(&name.as_str()));
    found.queues.retain(|name| names.side_queues().any(|it| it == name));
    let mine: Vec<&str> = names.exchanges().into_iter().chain(names.side_queues()).collect();
    let touches =
        |it: &Link| [&it.binding.source, &it.to].iter().any(|end| mine.contains(&end.as_str()));
    found.links.retain(touches);
    Ok(found)
}

fn expected(plant: &Plant) -> Belongings {
    let names = &plant.names;
    let link = |source: &str, to: &str, is_queue| {
        let binding = Binding::plain(source);
        Link { binding, to: to.to_owned(), is_queue }
    };
    let mut links = vec![
        link(&names.hold, &names.s1, true),
        link(&names.both, &names.s2, true),
        link(&names.both, &names.primary, true),
        link(&names.gate, &names.primary, true),
        link(&names.gate, &names.both, false),
    ];
    let feed = plant.bindings.iter().cloned();
    links.extend(feed.map(|binding| Link { binding, to: names.gate.clone(), is_queue: false }));
    links.sort();
    Belongings {
        exchanges: names.exchanges().map(str::to_owned).into(),
        queues: names.side_queues().map(str::to_owned).collect(),
        links,
    }
}
