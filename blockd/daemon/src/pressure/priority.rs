//! The lowest priority for a thread.

/// Makes the calling thread one that runs while no other thread wants the processor, and whose disk requests others pass.
/// Where the system refuses that, it stays as it is.
pub(crate) fn lower() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the thread is the calling one (0), and the parameters are on the stack and only read.
    let is_idle = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } == 0;
    if !is_idle {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a thread for tasks keeps its priority");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_the_thread_that_asks_gets_it() {
        // SAFETY: it takes no pointer.
        let policy = || unsafe { libc::sched_getscheduler(0) };
        let before = policy();
        let lowered = std::thread::spawn(move || {
            super::lower();
            policy()
        });
        assert_eq!(lowered.join().unwrap(), libc::SCHED_IDLE);
        assert_eq!(policy(), before);
    }
}
