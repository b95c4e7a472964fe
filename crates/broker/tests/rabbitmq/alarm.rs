//! Under an alarm.

use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use shadow_broker::Error;
use shadow_broker::conformance::{Failure, Outcome, Rig, Stage, ensure, eventually, order_id};
use shadow_protocol::broker::{Emptiness, Order, QueueType, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::names::control_queue;

use crate::raw::rabbitmqctl;
use crate::rig::RabbitRig;

/// An alarm holds a publish and delivers it later, even one whose client has gone; an order held
/// past its deadline is discarded, and everything but publishing goes on.
pub async fn alarm(rig: RabbitRig, stage: Stage, command: &str) -> Outcome {
    let pod = stage.name("pod");
    let (control, plain, side) = (control_queue(&pod), stage.name("plain"), stage.name("side"));
    rig.remove(&[&control, &plain, &side], &[]).await?;
    rig.declare_queue(&control, &QueueType::Classic).await?;
    rig.declare_queue(&plain, &QueueType::Classic).await?;
    let session = stage.session("alarm").await?;
    session.apply(&Topology::DeclareSideQueue { name: side.clone() }).await?;
    let order = Order::new(&pod, Control::EndReplay);
    let (connection, channel) = rig.connect().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    rabbitmqctl(command, &["set_vm_memory_high_watermark", "absolute", "1MB"]).await?;
    let outcome = async {
        let alarms = async || Ok(!session.survey(&plain, &plain).await?.alarms.is_empty());
        eventually("the alarm is in force", alarms).await?;
        let sent = channel.basic_publish(
            "".into(),
            plain.as_str().into(),
            BasicPublishOptions::default(),
            b"held",
            BasicProperties::default(),
        );
        let held = tokio::time::timeout(Duration::from_secs(1), async { sent.await?.await }).await;
        ensure(held.is_err(), || "a publish was confirmed under an alarm".to_owned())?;
        drop((connection, channel));
        let begun = Instant::now();
        let order = session.order(&order, &order_id()).await;
        ensure(matches!(order, Err(Error::Timeout { .. })), || format!("the order: {order:?}"))?;
        let took = begun.elapsed();
        let binding = shadow_protocol::broker::Binding::plain("amq.fanout");
        let change = Topology::BindQueue { queue: side.clone(), binding };
        session.apply(&change).await?;
        let empty = session.emptiness(&side).await?;
        ensure(empty == Emptiness::Proved, || "no proof under an alarm".to_owned())?;
        Ok::<_, Failure>(took)
    }
    .await;
    rabbitmqctl(command, &["set_vm_memory_high_watermark", "absolute", "2GB"]).await?;
    let took = outcome?;
    let late = async || Ok(session.counts(&plain).await?.is_some_and(|c| c.ready == 1));
    eventually("the held publish is delivered after all", late).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let orders = session.counts(&control).await?.map(|counts| counts.ready);
    ensure(orders == Some(0), || format!("{orders:?} discarded orders were delivered"))?;
    session.order(&order, &order_id()).await?;
    let orders = session.counts(&control).await?.map(|counts| counts.ready);
    ensure(orders == Some(1), || format!("{orders:?} orders after the alarm"))?;
    session.close().await;
    rig.remove(&[&control, &plain, &side], &[]).await?;
    Ok(format!(
        "a held publish was delivered after the alarm though its client had gone; an order was \
         given up and discarded in {:.1} s, and the next one arrived; topology changes and proofs went on",
        took.as_secs_f64()
    ))
}
