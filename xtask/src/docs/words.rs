//! Effects and interests in the words of the documents.

use shadow_protocol::broker::{Binding, Order, Topology};
use shadow_protocol::control::Control;
use shadow_protocol::effect::Effect;
use shadow_protocol::names::control_queue;
use shadow_protocol::observation::Interest;

/// What is done, in order; what is done alike is said once.
pub fn effects(effects: &[Effect]) -> String {
    let mut said: Vec<(String, Vec<String>)> = Vec::new();
    for effect in effects {
        let (verb, object) = effect_words(effect);
        match said.last_mut() {
            Some((last, objects)) if *last == verb && !object.is_empty() => objects.push(object),
            _ => said.push((verb, vec![object])),
        }
    }
    let said: Vec<String> = said
        .into_iter()
        .map(|(verb, objects)| format!("{verb} {}", objects.join(", ")).trim_end().to_owned())
        .collect();
    said.join("; ")
}

fn effect_words(effect: &Effect) -> (String, String) {
    let whole = |words: &str| (words.to_owned(), String::new());
    match effect {
        Effect::Lock => whole("take the lock"),
        Effect::Topology(change) => topology(change),
        Effect::Order(Order { pod, control, waits_in }) => {
            let order = match control {
                Control::StartReplay { queue, .. } => format!("`START_REPLAY`{{{queue}}}"),
                Control::EndReplay => "`END_REPLAY`".to_owned(),
            };
            let by = waits_in.as_ref().map(|wait| format!(" by way of {}", queue(wait)));
            (format!("{order} to {pod}{}", by.unwrap_or_default()), String::new())
        }
        Effect::Checkpoint => whole("ask the kubelet for the checkpoint"),
        Effect::PrePull => whole("have the workload's image pulled on the target node"),
        Effect::PullCheckpoint => whole("have the checkpoint pulled on the target node"),
        Effect::DeletePrePull => whole("delete what pulled the images"),
        Effect::CreateJob => whole("create the transfer Job"),
        Effect::DeleteJob => whole("delete the transfer Job"),
        Effect::CreateTarget => whole("create the target pod"),
        Effect::DeleteTarget => whole("delete the target pod"),
        Effect::OpenGate => whole("open the target's readiness gate"),
        Effect::Announce => whole("give the target the labels that Services select"),
        Effect::PreferSource => whole("make the source the first that its ReplicaSet deletes"),
        Effect::UnpreferSource => whole("let the source be as any other to its ReplicaSet"),
        Effect::Adopt => whole("give the target all labels of the source"),
        Effect::Pin => whole("pin the Deployment to the target node, with the target as its pod"),
        Effect::Unpin => whole("give the Deployment its template back"),
        Effect::DeleteSource => whole("delete the source pod"),
        Effect::Vacate => whole("delete the source pod with the shortest grace"),
        Effect::MakeRoom => whole("delete the pod that stands by with the shortest grace"),
        Effect::ScaleDown { .. } => {
            whole("scale the StatefulSet down by one, which deletes the source")
        }
        Effect::ScaleUp { .. } => whole("scale the StatefulSet up again"),
        Effect::Hold => whole("keep the copy's name free"),
        Effect::Release => whole("end what the API server denies on its behalf"),
        Effect::Admit { node } => {
            (format!("create the copy on {node}, as its owner's own"), String::new())
        }
        Effect::Retire => whole("see to it that the checkpoint is never restored again"),
        Effect::CloseBroker => whole("close the connections to the broker, the lock's among them"),
    }
}

fn topology(change: &Topology) -> (String, String) {
    let feed = |to: &str, from: &Binding| format!("{}→{}", queue(to), queue(&from.source));
    let (verb, object) = match change {
        Topology::DeclareExchange { name, .. }
        | Topology::DeclareSideQueue { name }
        | Topology::DeclareWaitingQueue { name, .. } => ("declare", name.clone()),
        Topology::DeclareControlQueue { name, .. } => ("declare and purge", queue(name)),
        Topology::BindQueue { queue, binding } => ("bind", feed(queue, binding)),
        Topology::UnbindQueue { queue, binding } => ("unbind", feed(queue, binding)),
        Topology::BindExchange { destination, binding } => ("bind", feed(destination, binding)),
        Topology::UnbindExchange { destination, binding } => ("unbind", feed(destination, binding)),
        Topology::DeleteExchange { name } | Topology::DeleteQueue { name } => {
            ("delete", queue(name))
        }
        Topology::Move { from, to } => ("move what is in", format!("{from} to {to}")),
        Topology::Purge { queue } => ("purge", queue.clone()),
    };
    (verb.to_owned(), object)
}

fn queue(name: &str) -> String {
    // The second hop's are made from names that are words already.
    let known = [
        (control_queue(""), "the control queue of "),
        ("ms2m.gate-2.".to_owned(), "second "),
        ("`Q`.ms2m-source.gate-2.".to_owned(), "second S"),
        ("`Q`.ms2m-park.gate-2.".to_owned(), "second park."),
        ("`Q`.ms2m-wake.gate-2.1".to_owned(), "second wake"),
    ];
    let known = known.iter().find_map(|(prefix, words)| Some((words, name.strip_prefix(prefix)?)));
    known.map_or_else(|| name.to_owned(), |(words, rest)| format!("{words}{rest}"))
}

/// What is looked at besides the pods, which are watched.
pub fn interest(interest: Interest) -> String {
    let Interest {
        preflight,
        primary,
        s1,
        s2,
        bindings,
        park,
        park2,
        wake,
        target_control,
        consumers,
        primary_quiet,
        primary_empty,
        s1_empty,
        connected,
        totals,
        heir,
        going,
        job,
        prepull,
        pulled,
    } = interest;
    let words = [
        (preflight, "what the preflight asks"),
        (primary, "`Q`"),
        (s1, "S1"),
        (s2, "S2"),
        (park, "park.1"),
        (park2, "park.2"),
        (wake, "wake"),
        (target_control, "the target's control queue"),
        (bindings, "bindings of `Q`"),
        (consumers, "who consumes `Q`"),
        (primary_quiet, "proof: nothing of `Q` unacknowledged"),
        (primary_empty, "proof: `Q` empty"),
        (s1_empty, "proof: S1 empty"),
        (connected, "the source's connection"),
        (totals, "the broker's totals"),
        (heir, "who took the source's place"),
        (going, "the source, asked for afresh"),
        (job, "the transfer Job"),
        (prepull, "the pull of the image"),
        (pulled, "the pull of the checkpoint"),
    ];
    let asked: Vec<&str> = words.into_iter().filter(|(asked, _)| *asked).map(|(_, w)| w).collect();
    asked.join(", ")
}
