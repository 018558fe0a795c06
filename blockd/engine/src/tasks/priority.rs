//! Low scheduling priorities for threads.

#![allow(unsafe_code, reason = "scheduler calls of libc")]

use crate::error::ServiceError;
use tokio::sync::oneshot;

const MAX_NICE: libc::c_int = 19;
/// `IOPRIO_WHO_PROCESS` of the kernel: a thread.
const IOPRIO_THREAD: libc::c_int = 1;
/// `IOPRIO_CLASS_IDLE`, in the bits of the class.
const IOPRIO_IDLE: libc::c_int = 3 << 13;

/// Runs blocking work on a thread of its own, after `lower` on that thread.
///
/// # Errors
/// The thread cannot be started, or panics.
pub(crate) async fn on_thread<R: Send + 'static>(
    name: &str,
    lower: fn(),
    work: impl FnOnce() -> R + Send + 'static,
) -> Result<R, ServiceError> {
    let (reply, answer) = oneshot::channel();
    let span = tracing::Span::current();
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        let _entered = span.entered();
        lower();
        let _ = reply.send(work());
    });
    thread.map_err(|error| ServiceError::Internal(format!("cannot start a thread: {error}")))?;
    answer.await.map_err(|_| ServiceError::Internal(format!("the thread `{name}` panicked")))
}

/// Gives the calling thread the policy `SCHED_IDLE`: it runs while no other thread wants the processor, and
/// its disk requests have a low priority. If the system refuses, the priority is unchanged.
pub fn set_idle() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the thread is the calling one (0), and the parameters are on the stack and only read.
    let is_idle = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } == 0;
    if !is_idle {
        tracing::debug!(error = %std::io::Error::last_os_error(), "lowering the priority of a task thread failed");
    }
}

/// Gives the calling thread the highest nice value, with which it still gets processor time. For threads that
/// change a filesystem: an idle-class thread may be preempted while it holds a lock that every flush on that
/// filesystem needs.
pub fn raise_nice() {
    // SAFETY: it takes no pointer; the thread is the calling one (0).
    let is_lower = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, MAX_NICE) } == 0;
    if !is_lower {
        tracing::debug!(error = %std::io::Error::last_os_error(), "lowering the priority of a task thread failed");
    }
}

/// Gives the calling thread the highest nice value, the policy `SCHED_BATCH`, with which it preempts no other
/// thread, and the idle class of disk requests. For threads that read much: its few short changes of a
/// filesystem still get processor time. Not every disk scheduler has priorities.
pub fn set_background_reader() {
    raise_nice();
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the thread is the calling one (0), and the parameters are on the stack and only read.
    let is_batch = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &raw const parameters) } == 0;
    // SAFETY: it takes no pointer; the thread is the calling one (0).
    let is_idle = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_THREAD, 0, IOPRIO_IDLE) } == 0;
    if !(is_batch && is_idle) {
        tracing::debug!(error = %std::io::Error::last_os_error(), "lowering the priority of a task thread failed");
    }
}

#[cfg(test)]
mod tests {
    #[tokio::test]
    async fn background_reader_has_the_lowest_priorities() {
        // SAFETY: none takes a pointer.
        let state = || unsafe {
            let io = libc::syscall(libc::SYS_ioprio_get, super::IOPRIO_THREAD, 0) as libc::c_int;
            (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0), io)
        };
        let before = state();
        let lowered = super::on_thread("test", super::set_background_reader, state).await.unwrap();
        assert_eq!(lowered, (libc::SCHED_BATCH, 19, super::IOPRIO_IDLE));
        assert_eq!(state(), before);
        let panicked = super::on_thread("test", || {}, || panic!("on purpose")).await;
        assert!(matches!(panicked, Err::<(), _>(crate::error::ServiceError::Internal(_))));
    }

    #[test]
    fn idle_policy_applies_to_the_calling_thread_only() {
        // SAFETY: it takes no pointer.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let lowered = std::thread::spawn(move || {
            super::set_idle();
            policy()
        });
        assert_eq!(lowered.join().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }

    #[test]
    fn nice_thread_keeps_its_scheduling_policy() {
        // SAFETY: neither takes a pointer.
        let state = || unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        let before = state();
        let lowered = std::thread::spawn(move || {
            super::raise_nice();
            state()
        });
        assert_eq!(lowered.join().unwrap(), (before.0, 19));
        assert_eq!(state(), before);
    }
}
