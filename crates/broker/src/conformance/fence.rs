//! The lock is a fence: a successor gets it at once, and what the predecessor does later fails.

use futures::FutureExt as _;
use shadow_protocol::broker::{Binding, Order, QueueType, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::names::control_queue;

use super::{Case, Outcome, Stage, ensure, eventually, order_id};
use crate::Error;

pub(super) fn cases() -> Vec<Case> {
    vec![Case { name: "fence", run: |stage| fence(stage).boxed() }]
}

async fn fence(stage: Stage) -> Outcome {
    let (lock, side, pod) = (stage.name("lock"), stage.name("side"), stage.name("pod"));
    let control = control_queue(&pod);
    let exchange = stage.name("exchange");
    stage.rig.remove(&[&side, &control], &[&exchange]).await?;
    stage.rig.declare_exchange(&exchange, "fanout").await?;
    stage.rig.declare_queue(&control, &QueueType::Classic).await?;
    let deposed = stage.session("same").await?;
    deposed.lock(&lock).await?;
    deposed.lock(&lock).await?;
    let order = Order::new(&pod, Control::EndReplay);
    deposed.order(&order, &order_id()).await?;
    deposed.apply(&Topology::DeclareSideQueue { name: side.clone() }).await?;

    let stranger = stage.session("other").await?;
    let refused = stranger.lock(&lock).await;
    let holder = match refused {
        Err(Error::Locked { holder, .. }) => holder,
        other => return Err(super::Failure(format!("a stranger's lock: {other:?}"))),
    };
    ensure(holder.ends_with("fence/same"), || format!("the holder is called {holder:?}"))?;
    ensure(deposed.alive(), || "a stranger closed the holder's connection".to_owned())?;

    let successor = stage.session("same").await?;
    let begun = tokio::time::Instant::now();
    successor.lock(&lock).await?;
    let took = begun.elapsed();
    eventually("the predecessor knows", async || Ok(!deposed.alive())).await?;
    let binding = Binding::plain(&exchange);
    let late = Topology::BindQueue { queue: side.clone(), binding: binding.clone() };
    ensure(deposed.apply(&late).await.is_err(), || "a late change succeeded".to_owned())?;
    ensure(deposed.counts(&side).await.is_err(), || "a late look succeeded".to_owned())?;
    ensure(deposed.emptiness(&side).await.is_err(), || "a late proof succeeded".to_owned())?;
    ensure(deposed.order(&order, &order_id()).await.is_err(), || {
        "a late order succeeded".to_owned()
    })?;
    let bindings = successor.bindings(&side).await?;
    ensure(!bindings.contains(&binding), || "a late change was made".to_owned())?;
    successor.order(&order, &order_id()).await?;
    for session in [&deposed, &stranger, &successor] {
        session.close().await;
    }
    stage.rig.remove(&[&side, &control], &[&exchange]).await?;
    Ok(format!("successor held the lock after {} ms", took.as_millis()))
}
