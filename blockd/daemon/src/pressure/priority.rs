//! The lowest priority for a thread.

const LOWEST_NICE: libc::c_int = 19;

/// Makes the calling thread one that runs while no other thread wants the processor, and whose disk requests
/// others pass. Where the system refuses that, it stays as it is.
pub(crate) fn lower() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the thread is the calling one (0), and the parameters are on the stack and only read.
    let is_idle = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &raw const parameters) } == 0;
    if !is_idle {
        tracing::debug!(error = %std::io::Error::last_os_error(), "a thread for tasks keeps its priority");
    }
}

/// The lowest priority with which a thread still has its turn, for those that change a filesystem: one that
/// runs only while no other wants to may hold what every flush on that filesystem waits for.
pub(crate) fn lower_but_in_turn() {
    // SAFETY: it takes no pointer; the thread is the calling one (0).
    let is_lower = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, LOWEST_NICE) } == 0;
    if !is_lower {
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

    #[test]
    fn who_has_its_turn_is_not_of_the_idle_class() {
        // SAFETY: neither takes a pointer.
        let state = || unsafe { (libc::sched_getscheduler(0), libc::getpriority(libc::PRIO_PROCESS, 0)) };
        let before = state();
        let lowered = std::thread::spawn(move || {
            super::lower_but_in_turn();
            state()
        });
        assert_eq!(lowered.join().unwrap(), (before.0, 19));
        assert_eq!(state(), before);
    }
}
