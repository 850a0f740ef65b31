//! Which system calls are refused.
//!
//! A list of what is refused, not of what is allowed: which calls the C library, the allocator and the standard library make
//! changes with their versions, and a daemon that one day lacks `mseal` would take all its images down. What is listed
//! is what a subverted process needs to go further: programs, sockets, other processes, the kernel's rarely used parts, and ways
//! around landlock. Each answers EPERM, so that a call that somebody misses costs that call and not the process.
//!
//! The kernel knows for most calls, once and for all, that the filter allows them, and does not run it for them.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

/// Refused with whatever arguments.
const REFUSED: &[c_long] = &[
    // Programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Sockets: what speaks to the log is open.
    libc::SYS_socketpair,
    libc::SYS_bind,
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_kcmp,
    libc::SYS_kill,
    // Files by handle: any file of a file system, for who may read everything.
    libc::SYS_open_by_handle_at,
    libc::SYS_fanotify_init,
    // Mounts and namespaces.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fspick,
    libc::SYS_mount_setattr,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_quotactl,
    // The kernel itself, and parts of it that were often broken.
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_kexec_file_load,
    libc::SYS_reboot,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_userfaultfd,
    libc::SYS_io_uring_setup,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_keyctl,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_personality,
    libc::SYS_syslog,
    libc::SYS_acct,
    // Names and clocks of the machine.
    libc::SYS_sethostname,
    libc::SYS_setdomainname,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_adjtimex,
    libc::SYS_clock_adjtime,
    libc::SYS_vhangup,
    // What only this processor has.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_iopl,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_ioperm,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_modify_ldt,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_uselib,
];

/// Refused as well where there is no network.
const OF_NETWORK: &[c_long] = &[libc::SYS_socket, libc::SYS_connect];

/// The same calls have second numbers for programs with 32-bit pointers, and some have a third.
#[cfg(target_arch = "x86_64")]
const X32: c_long = 0x4000_0000;
#[cfg(target_arch = "x86_64")]
const X32_ONLY: std::ops::RangeInclusive<c_long> = 512..=547;

/// Refuses the calls above from here on, in all threads.
pub(super) fn restrict(has_network: bool) -> Result<String, String> {
    let arch: TargetArch = std::env::consts::ARCH
        .try_into()
        .map_err(|_| format!("the filter is not made for {}", std::env::consts::ARCH))?;
    let make = || -> Result<[BpfProgram; 2], seccompiler::BackendError> {
        Ok([
            filter(refused(has_network)?, libc::EPERM, arch)?,
            // Its flags lie in memory, where no filter can look; the C library then uses `clone`.
            filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), libc::ENOSYS, arch)?,
        ])
    };
    let programs = make().map_err(|error| error.to_string())?;
    for program in &programs {
        seccompiler::apply_filter_all_threads(program).map_err(|error| match error {
            seccompiler::Error::Seccomp(error) if error.kind() == io::ErrorKind::InvalidInput => {
                "this kernel was built without it".to_owned()
            }
            error => error.to_string(),
        })?;
    }
    Ok(match has_network {
        true => format!("{} calls, sockets other than of IP", REFUSED.len()),
        false => format!("{} calls", REFUSED.len() + OF_NETWORK.len()),
    })
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn filter(
    rules: Rules,
    errno: libc::c_int,
    arch: TargetArch,
) -> Result<BpfProgram, seccompiler::BackendError> {
    let action = SeccompAction::Errno(errno.unsigned_abs());
    SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()
}

fn refused(has_network: bool) -> Result<Rules, seccompiler::BackendError> {
    let mut rules: Rules = REFUSED.iter().map(|&call| (call, Vec::new())).collect();
    if has_network {
        // Kinds of sockets that IP knows; each further one is a part of the kernel, and those of this machine lead to its services.
        let [v4, v6] = [libc::AF_INET, libc::AF_INET6].map(|family| u64::from(family.unsigned_abs()));
        let other =
            SeccompRule::new(vec![condition(0, SeccompCmpOp::Ne, v4)?, condition(0, SeccompCmpOp::Ne, v6)?])?;
        rules.insert(libc::SYS_socket, vec![other]);
    } else {
        rules.extend(OF_NETWORK.iter().map(|&call| (call, Vec::new())));
    }
    #[cfg(target_arch = "x86_64")]
    {
        let tested = [libc::SYS_clone, libc::SYS_clone3];
        let calls = REFUSED.iter().chain(OF_NETWORK).copied().chain(tested).chain(X32_ONLY);
        rules.extend(calls.map(|call| (call | X32, Vec::new())));
    }
    // A new process, or a thread in other namespaces.
    let thread = libc::CLONE_THREAD.unsigned_abs();
    let mut clone = vec![rule(0, SeccompCmpOp::MaskedEq(thread.into()), 0)?];
    for namespace in [libc::CLONE_NEWNS, libc::CLONE_NEWUSER, libc::CLONE_NEWNET] {
        let namespace = u64::from(namespace.unsigned_abs());
        clone.push(rule(0, SeccompCmpOp::MaskedEq(namespace), namespace)?);
    }
    rules.insert(libc::SYS_clone, clone);
    // Words put into the terminal that the process was started from.
    let terminal = [libc::TIOCSTI, libc::TIOCLINUX];
    let terminal = terminal.into_iter().map(|command| rule(1, SeccompCmpOp::Eq, command));
    rules.insert(libc::SYS_ioctl, terminal.collect::<Result<_, _>>()?);
    Ok(rules)
}

/// Matches a call whose argument number `index` compares so.
fn rule(index: u8, operator: SeccompCmpOp, value: u64) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![condition(index, operator, value)?])
}

fn condition(
    index: u8,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value)
}
