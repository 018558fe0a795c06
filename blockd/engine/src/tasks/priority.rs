//! Low scheduling priorities for threads.

#![allow(unsafe_code, reason = "scheduler calls of libc")]

const MAX_NICE: libc::c_int = 19;

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

#[cfg(test)]
mod tests {
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
