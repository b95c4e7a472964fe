//! Whether a StatefulSet's pod may leave it, or come back to its name in a second hop.

use super::{Checked, no, unknown};
use crate::observation::{Owner, Pod, PodsOfSet, Preflight};
use crate::phase::Hop;
use crate::spec::{IdentitySwap, ReplayMode, Spec, Strategy};

/// How many pods the StatefulSet has that the copy leaves: it keeps its last pod's place for nobody.
pub(super) fn leaves(
    spec: &Spec,
    pod: &Pod,
    strategy: Strategy,
    preflight: &Preflight,
) -> Checked<Option<u32>> {
    let Owner::StatefulSet(set) = &pod.owner else { return Ok(None) };
    if strategy != Strategy::ShadowPod || spec.identity_swap != IdentitySwap::None {
        return Ok(None);
    }
    let name = &spec.source_pod;
    let instead = "use strategy Sequential, or identitySwapMode ExchangeFence or Cutoff";
    let Some(PodsOfSet { first, replicas, deletes_claims }) = preflight.set else {
        return unknown(format!("StatefulSet {set} to be read"));
    };
    let last = format!("{set}-{}", u64::from(first) + u64::from(replicas.max(1)) - 1);
    if *name != last {
        return no(
            "NotTheLastReplica",
            format!(
                "strategy ShadowPod without identitySwapMode takes source pod {name} out of \
                 StatefulSet {set}, which is scaled down by one and so gives up {last}; {instead}"
            ),
        );
    }
    if deletes_claims {
        return no(
            "ClaimsWouldGo",
            format!(
                "StatefulSet {set} deletes the volume claims of pods that leave it \
                 (persistentVolumeClaimRetentionPolicy.whenScaled: Delete), and pod {name} would; \
                 set it to Retain, or {instead}"
            ),
        );
    }
    Ok(Some(replicas))
}

/// A swap of identities takes two hops, timed each as asked for.
pub(super) fn hop(spec: &Spec, pod: &Pod, mode: ReplayMode) -> Checked<Hop> {
    let name = &spec.source_pod;
    let then = match spec.identity_swap {
        IdentitySwap::None => return Ok(Hop::Only),
        IdentitySwap::ExchangeFence => ReplayMode::Cutoff,
        IdentitySwap::Cutoff => ReplayMode::Drain,
    };
    if !matches!(pod.owner, Owner::StatefulSet(_)) {
        return no(
            "NotSupported",
            format!(
                "identitySwapMode is for pods of StatefulSets, whose names are their identity; pod \
                 {name} is none; use None"
            ),
        );
    }
    if mode == ReplayMode::Park {
        return no(
            "NotSupported",
            format!(
                "identitySwapMode in mode Park would let pod {name} stand still twice; use \
                 replayMode Cutoff or Drain"
            ),
        );
    }
    Ok(Hop::First { then })
}
