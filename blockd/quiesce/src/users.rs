//! Test of commands as another user, which the settings of the daemon's unit may forbid.

use crate::command::Hook;
use blockd_api::quiesce::QuiesceKind;
use nix::unistd::{Uid, User, geteuid};
use rustix::thread::{CapabilitySet, capabilities};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Timeout of the test, which takes some milliseconds.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Path of the drop-in with the required unit settings in the package.
const DROP_IN: &str = "/usr/share/doc/blockd/examples/systemd/blockd-rule-users.conf";

/// Cause why commands cannot run as a user.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserRefused {
    /// Unknown user.
    #[error("there is no user {0} on the daemon's host: name an existing user")]
    Unknown(String),
    /// The daemon lacks the privileges.
    #[error(
        "blockd, which runs as user {own}, cannot run commands as user {user} ({why}): omit the user, so that they run as {own}, or let \
         blockd do it, by the drop-in {DROP_IN} for blockd.service"
    )]
    NotAllowed {
        /// User of the commands.
        user: String,
        /// User of the daemon.
        own: String,
        /// Cause.
        why: String,
    },
    /// Unknown, as the daemon stops.
    #[error("the daemon is stopping: the test of commands as user {0} was not completed")]
    Stopping(String),
}

/// Runs an empty command as a user. Blocks.
///
/// # Errors
/// The command cannot run.
pub fn try_user(user: &str, stopping: &CancellationToken) -> Result<(), UserRefused> {
    let own = geteuid();
    match User::from_name(user) {
        Ok(None) => return Err(UserRefused::Unknown(user.to_owned())),
        Ok(Some(found)) if found.uid == own => return Ok(()),
        Ok(Some(_)) | Err(_) => {}
    }
    let not_allowed = |why: String| UserRefused::NotAllowed { user: user.to_owned(), own: name_of(own), why };
    let hook = Hook {
        kind: QuiesceKind::PreCommand,
        rule: None,
        command: ":",
        user: Some(user),
        timeout: TIMEOUT,
        env: &[],
        lock: None,
        stopping: Some(stopping),
    };
    if let Some(error) = hook.run().error {
        return match stopping.is_cancelled() {
            true => Err(UserRefused::Stopping(user.to_owned())),
            false => Err(not_allowed(error)),
        };
    }
    // After the timeout, the command and its children must be killed.
    match capabilities(None) {
        Ok(sets) if !sets.effective.contains(CapabilitySet::KILL) => {
            Err(not_allowed("it could not kill them without CAP_KILL".to_owned()))
        }
        _ => Ok(()),
    }
}

fn name_of(uid: Uid) -> String {
    User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::thread::{remove_capability_from_bounding_set, set_capabilities};

    /// Runs the test from a thread whose children lack a capability.
    fn without(lacking: CapabilitySet, user: &'static str) -> Result<(), UserRefused> {
        let trial = move || {
            let mut sets = capabilities(None).unwrap();
            sets.effective.remove(lacking);
            remove_capability_from_bounding_set(lacking).unwrap();
            set_capabilities(None, sets).unwrap();
            try_user(user, &CancellationToken::new())
        };
        std::thread::spawn(trial).join().unwrap()
    }

    #[test]
    fn missing_privilege_for_users_names_the_remedy() {
        let stopping = CancellationToken::new();
        assert_eq!(try_user("no-such-user", &stopping), Err(UserRefused::Unknown("no-such-user".into())));
        let own = name_of(geteuid());
        assert_eq!(try_user(&own, &stopping), Ok(()));
        if !geteuid().is_root() {
            assert!(try_user("root", &stopping).unwrap_err().to_string().contains(DROP_IN));
            eprintln!("=== SKIPPED: only root can run commands as another user ===");
            return;
        }
        assert_eq!(try_user("nobody", &stopping), Ok(()));
        for lacking in [CapabilitySet::SETUID, CapabilitySet::SETGID] {
            let told = without(lacking, "nobody").unwrap_err().to_string();
            assert!(
                told.starts_with(
                    "blockd, which runs as user root, cannot run commands as user nobody (exit status "
                ),
                "{told}"
            );
            assert!(told.contains("setpriv: ") && told.contains(DROP_IN), "{told}");
        }
        let told = without(CapabilitySet::KILL, "nobody").unwrap_err().to_string();
        assert!(told.contains("CAP_KILL"), "{told}");
        assert_eq!(without(CapabilitySet::SETUID, "root"), Ok(()));
        stopping.cancel();
        assert!(matches!(try_user("nobody", &stopping), Ok(()) | Err(UserRefused::Stopping(_))));
    }
}
