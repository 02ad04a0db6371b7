//! Shaped links, for kernels without `netem`.
//!
//! A link is a TAP device in each of two namespaces. One thread of the lab reads every frame from
//! one device, keeps it as long as the link says, and writes it to the other.

use std::{
    cmp::Reverse,
    fs::OpenOptions,
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::fs::OpenOptionsExt,
    },
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::{
    error::{Context, Result},
    link::Link,
    queue::{Dice, Queue},
};

/// The thread that carries all shaped links of a lab. Dropping it removes the links' interfaces.
pub(crate) struct Carrier {
    links: Arc<Mutex<Vec<Link>>>,
    wake: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Carrier {
    /// Starts to carry frames between each pair of TAP devices.
    pub(crate) fn start(pairs: Vec<([OwnedFd; 2], Link)>) -> Result<Self> {
        // SAFETY: these are system calls without pointers, and the descriptors are owned at once.
        let (epoll, wake) = unsafe {
            let epoll = libc::epoll_create1(libc::EPOLL_CLOEXEC);
            let wake = libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK);
            if epoll < 0 || wake < 0 {
                return Err(io::Error::last_os_error())
                    .context("make the link thread's descriptors");
            }
            (
                OwnedFd::from_raw_fd(epoll),
                Arc::new(OwnedFd::from_raw_fd(wake)),
            )
        };
        let watch = |fd: RawFd, id: u64| {
            let mut event = libc::epoll_event {
                events: libc::EPOLLIN as u32,
                u64: id,
            };
            // SAFETY: `event` outlives the call.
            if unsafe { libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &mut event) }
                != 0
            {
                return Err(io::Error::last_os_error()).context("watch a link");
            }
            Ok(())
        };
        let (ends, links): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        for (i, [a, b]) in ends.iter().enumerate() {
            watch(a.as_raw_fd(), 2 * i as u64)?;
            watch(b.as_raw_fd(), 2 * i as u64 + 1)?;
        }
        watch(wake.as_raw_fd(), u64::MAX)?;
        let links = Arc::new(Mutex::new(links));
        let work = Work {
            ends,
            links: Arc::clone(&links),
            epoll,
            wake: Arc::clone(&wake),
        };
        let thread = thread::Builder::new()
            .name("lab-links".into())
            .spawn(move || work.run())
            .context("start the link thread")?;
        Ok(Self {
            links,
            wake,
            thread: Some(thread),
        })
    }

    /// Changes link number `index` from the next frame on. Frames under way keep their due time.
    pub(crate) fn set(&self, index: usize, link: Link) {
        if let Some(slot) = self
            .links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_mut(index)
        {
            *slot = link;
        }
    }

    /// The link's present conditions.
    pub(crate) fn get(&self, index: usize) -> Option<Link> {
        self.links
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(index)
            .copied()
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        // SAFETY: this writes 8 bytes from a live value, as eventfd expects.
        unsafe { libc::write(self.wake.as_raw_fd(), (&raw const STOP).cast(), 8) };
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

static STOP: u64 = 1;

struct Work {
    ends: Vec<[OwnedFd; 2]>,
    links: Arc<Mutex<Vec<Link>>>,
    epoll: OwnedFd,
    #[expect(
        dead_code,
        reason = "keeps the descriptor that stops this thread open as long as it runs"
    )]
    wake: Arc<OwnedFd>,
}

impl Work {
    fn run(self) {
        be_punctual();
        let mut queues: Vec<[Queue; 2]> = self.ends.iter().map(|_| Default::default()).collect();
        let mut dice = Dice(0x9E37_79B9_7F4A_7C15);
        let mut events = [libc::epoll_event { events: 0, u64: 0 }; 64];
        let mut frame = vec![0u8; 65_600];
        loop {
            let next = queues
                .iter()
                .flatten()
                .filter_map(|d| d.held.peek())
                .map(|Reverse((due, ..))| *due)
                .min();
            let count = self.wait(&mut events, next);
            for event in &events[..count] {
                let id = event.u64;
                if id == u64::MAX {
                    return;
                }
                self.collect(
                    id as usize / 2,
                    id as usize % 2,
                    &mut queues,
                    &mut dice,
                    &mut frame,
                );
            }
            let now = now();
            for (ends, queues) in self.ends.iter().zip(&mut queues) {
                for (from, queue) in queues.iter_mut().enumerate() {
                    while queue
                        .held
                        .peek()
                        .is_some_and(|Reverse((due, ..))| *due <= now)
                    {
                        if let Some(Reverse((.., frame))) = queue.held.pop() {
                            send(&ends[1 - from], &frame);
                        }
                    }
                }
            }
        }
    }

    /// Waits for a frame or for the time `next`. The timeout is in nanoseconds, because
    /// milliseconds would round every delay up.
    fn wait(&self, events: &mut [libc::epoll_event], next: Option<u64>) -> usize {
        let timeout = next.map(|due| {
            let left = due.saturating_sub(now());
            libc::timespec {
                tv_sec: (left / 1_000_000_000) as i64,
                tv_nsec: (left % 1_000_000_000) as i64,
            }
        });
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: `events` and `timeout` outlive the call. The null signal mask changes no signals.
        let count = unsafe {
            libc::syscall(
                libc::SYS_epoll_pwait2,
                self.epoll.as_raw_fd(),
                events.as_mut_ptr(),
                events.len(),
                timeout,
                std::ptr::null::<libc::sigset_t>(),
                8,
            )
        };
        usize::try_from(count).unwrap_or(0)
    }

    fn collect(
        &self,
        link: usize,
        from: usize,
        queues: &mut [[Queue; 2]],
        dice: &mut Dice,
        frame: &mut [u8],
    ) {
        let conditions = self.links.lock().unwrap_or_else(PoisonError::into_inner)[link];
        let queue = &mut queues[link][from];
        // The loop is bounded, so that one busy link cannot starve the others.
        for _ in 0..64 {
            // SAFETY: the buffer outlives the call and its length is its own.
            let length = unsafe {
                libc::read(
                    self.ends[link][from].as_raw_fd(),
                    frame.as_mut_ptr().cast(),
                    frame.len(),
                )
            };
            let Ok(length @ 1..) = usize::try_from(length) else {
                return;
            };
            let frame = &frame[..length];
            let now = now();
            let Some(due) = queue.admit(&conditions, now, length, &mut || dice.roll()) else {
                continue;
            };
            if due <= now && queue.held.is_empty() {
                send(&self.ends[link][1 - from], frame);
            } else {
                queue.hold(due, frame.to_vec());
            }
            if conditions.duplicate > 0.0 && dice.roll() < conditions.duplicate {
                queue.hold(due, frame.to_vec());
            }
        }
    }
}

fn send(to: &OwnedFd, frame: &[u8]) {
    // A full queue at the far end loses the frame.
    // SAFETY: the buffer outlives the call and its length is its own.
    unsafe { libc::write(to.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
}

/// Returns the monotonic clock in nanoseconds.
fn now() -> u64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid memory for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Asks for exact timers and for priority over ordinary work. A sandbox may refuse both, which does
/// no harm.
fn be_punctual() {
    let priority = libc::sched_param { sched_priority: 10 };
    // SAFETY: `priority` outlives the call, which affects the calling thread only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1usize, 0, 0, 0);
        libc::sched_setscheduler(0, libc::SCHED_RR, &priority);
    }
}

/// Makes a TAP device in the calling thread's namespace. It lives as long as its descriptor.
pub(crate) fn open(name: &str) -> Result<OwnedFd> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("open /dev/net/tun")?;
    // SAFETY: ifreq is plain data, and zero is valid for it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays 0, because the kernel expects a terminated name.
    let room = request.ifr_name.len() - 1;
    for (to, from) in request.ifr_name[..room].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: `request` has the type that TUNSETIFF expects, and outlives the call.
    if unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF as _, &request) } != 0 {
        return Err(io::Error::last_os_error()).context(format!("make the link device {name}"));
    }
    Ok(device.into())
}
