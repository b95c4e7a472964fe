//! One lab command at a time on this machine.

use std::os::{
    linux::net::SocketAddrExt,
    unix::net::{SocketAddr, UnixListener},
};

use crate::error::{Context, LabError, Result};

/// Held while a command changes the lab. An abstract socket: the kernel frees it when the
/// process ends, however it ends, and it leaves no file.
pub(crate) struct Lock(#[expect(dead_code, reason = "held, never read")] UnixListener);

impl Lock {
    pub(crate) fn take() -> Result<Self> {
        Self::named("shadow-lab")
    }

    fn named(name: &str) -> Result<Self> {
        let address =
            SocketAddr::from_abstract_name(name).context(|| "name the lab's lock".into())?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Err(LabError::Busy),
            Err(error) => Err(error).context(|| "take the lab's lock".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_one_is_told_and_the_third_gets_it() {
        let name = format!("shadow-lab-test-{}", std::process::id());
        let held = Lock::named(&name).unwrap();
        assert!(matches!(Lock::named(&name), Err(LabError::Busy)));
        drop(held);
        assert!(Lock::named(&name).is_ok());
    }
}
