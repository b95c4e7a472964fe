//! Checkpoint archives and the way they travel: as an OCI image whose one layer *is* the archive.
//!
//! ```text
//! archive.tar ──(one read: hashed while it is sent)──► blob ──► manifest ──► index, by digest
//! ```

pub mod archive;
pub mod image;
pub mod reference;
pub mod registry;
mod scheme;

pub use image::{PushReport, push_checkpoint};
pub use reference::ImageRef;
pub use registry::{Client, Credentials, Error};
