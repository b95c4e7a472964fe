//! The operator looks only at what a state asks for: whatever else there is to see must not be
//! needed.

use crate::decide::interest;
use crate::observation::{BrokerView, Interest, Observation};
use crate::phase::Phase;

/// What is seen of `seen` by somebody who looks only where `phase` says.
pub(super) fn asked(phase: &Phase, mut seen: Observation) -> Observation {
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
        // Pods are always seen, only how freshly differs.
        going: _,
        job,
        prepull,
        pulled,
    } = interest(phase);
    seen.preflight = seen.preflight.filter(|_| preflight);
    seen.heir = seen.heir.filter(|_| heir);
    seen.job = seen.job.filter(|_| job);
    seen.prepull = seen.prepull.filter(|_| prepull);
    seen.pulled = seen.pulled.filter(|_| pulled);
    seen.broker = seen.broker.map(|broker| BrokerView {
        primary: broker.primary.filter(|_| primary),
        s1: broker.s1.filter(|_| s1),
        s2: broker.s2.filter(|_| s2),
        bindings: broker.bindings.filter(|_| bindings),
        park: broker.park.filter(|_| park),
        park2: broker.park2.filter(|_| park2),
        wake: broker.wake.filter(|_| wake),
        target_control: broker.target_control.filter(|_| target_control),
        consumers: broker.consumers.filter(|_| consumers),
        primary_quiet: broker.primary_quiet.filter(|_| primary_quiet),
        primary_empty: broker.primary_empty.filter(|_| primary_empty),
        s1_empty: broker.s1_empty.filter(|_| s1_empty),
        connected: broker.connected.filter(|_| connected),
        totals: broker.totals.filter(|_| totals),
    });
    seen
}
