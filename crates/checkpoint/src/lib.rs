//! Checkpoint archives and the way they travel: as an OCI image whose one layer *is* the archive.
//!
//! ```text
//! archive.tar ──(headers: facts)──► annotations ─────────────────────────┐
//!       └──(one read: hashed while it is sent)──► layer ──► config, manifest, index ──► by digest
//! ```
//!
//! Memory use does not depend on the archive's size.

pub mod agent;
pub mod archive;
mod headers;
pub mod image;
pub mod kubelet_archives;
pub mod oci;
pub mod reference;
pub mod registry;

pub use image::{PushReport, push_checkpoint};
pub use reference::ImageRef;
pub use registry::{Client, Credentials, Error};
