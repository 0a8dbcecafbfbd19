//! Huge pages for what a session keeps in memory.
//!
//! A run reads all weights. In pages of 4 KiB those of MiniLM are 22,000, far more than a processor remembers the places of; in
//! pages of 2 MiB they are 43. Linux has such pages for programs that ask, and ONNX Runtime does not ask. With them a run of
//! MiniLM with one sample takes 0.95 of the time, one of Lite0 0.99 (`make bench`); larger batches gain less.

use std::{fs, ops::Range, thread, time::Instant};

use procfs::process::{MMPermissions, MMapPath, Process};

/// What the system's owner has decided about huge pages.
const SETTINGS: &str = "/sys/kernel/mm/transparent_hugepage";

/// Moves into huge pages what this process has in memory, and returns how many bytes lie in such pages now.
///
/// That takes 0.3 to 2 ms for each MiB, and a run that reads what is just being moved waits for it. So they are moved one by one, and
/// after each it rests `rest` times as long as that took. Huge pages of which a quarter or more would be unused memory are left as they
/// are. Where the system has no huge pages, is set to `never`, or runs a Linux before 6.1, nothing is done.
pub fn make_huge(rest: u32) -> usize {
    let setting = |name: &str| fs::read_to_string(format!("{SETTINGS}/{name}")).unwrap_or_default();
    let Ok(huge) = setting("hpage_pmd_size").trim().parse::<usize>() else { return 0 };
    if setting("enabled").contains("[never]") {
        return 0;
    }
    let Ok(maps) = Process::myself().and_then(|this| this.maps()) else { return 0 };
    let wanted = MMPermissions::READ | MMPermissions::WRITE | MMPermissions::PRIVATE;
    let own = maps
        .iter()
        .filter(|map| map.perms.contains(wanted) && matches!(map.pathname, MMapPath::Anonymous | MMapPath::Heap));
    let blocks = own.flat_map(|map| in_use(map.address.0 as usize..map.address.1 as usize, huge));
    let moved = blocks.map(|start| {
        let began = Instant::now();
        let bytes = collapse(start, huge);
        thread::sleep(began.elapsed() * rest);
        bytes
    });
    moved.sum()
}

/// Where huge pages between these addresses begin that are in use.
fn in_use(addresses: Range<usize>, huge: usize) -> impl Iterator<Item = usize> {
    let first = addresses.start.next_multiple_of(huge);
    let whole = (first..addresses.end).step_by(huge).filter(move |start| start + huge <= addresses.end);
    whole.filter(move |start| is_in_use(*start, huge))
}

/// Whether more than three quarters of these bytes are in memory.
#[expect(unsafe_code, reason = "no safe binding has mincore")]
fn is_in_use(start: usize, bytes: usize) -> bool {
    let mut pages = vec![0_u8; bytes.div_ceil(procfs::page_size() as usize)];
    // SAFETY: a byte is written for each page, and there are as many. The addresses are not touched, and may be gone.
    let told = unsafe { libc::mincore(start as *mut libc::c_void, bytes, pages.as_mut_ptr()) };
    let resident = pages.iter().filter(|page| **page & 1 == 1).count();
    told == 0 && 4 * resident > 3 * pages.len()
}

/// How many of these bytes are in a huge page now: all or none.
#[expect(unsafe_code, reason = "no safe binding has MADV_COLLAPSE")]
fn collapse(start: usize, bytes: usize) -> usize {
    // SAFETY: what is at these addresses, whosever it is by now, stays as it is and is only moved in physical memory.
    let done = unsafe { libc::madvise(start as *mut libc::c_void, bytes, libc::MADV_COLLAPSE) };
    if done == 0 { bytes } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use procfs::KernelVersion;

    use super::*;

    const MIB: usize = 1 << 20;

    const HUGE: usize = 2 * MIB;

    #[test]
    fn what_is_in_use_gets_huge_pages_and_what_is_not_stays_unused() {
        let setting = |name: &str| fs::read_to_string(format!("{SETTINGS}/{name}")).unwrap_or_default();
        // Blocks of this size get mappings of their own.
        let mut full = vec![1_u8; 40 * MIB];
        full[MIB] = 7;
        let mut half: Vec<u8> = Vec::with_capacity(40 * MIB);
        for block in half.spare_capacity_mut().chunks_mut(HUGE) {
            let used = block.len() / 2;
            block[..used].fill(MaybeUninit::new(2));
        }
        let (of_full, of_half) = (span(&full), span(half.spare_capacity_mut()));

        assert!(in_use(of_full, HUGE).count() >= 18);
        if setting("enabled").contains("[always]") {
            // The kernel has put whole pages where only halves were written to.
            return;
        }
        assert_eq!(in_use(of_half.clone(), HUGE).count(), 0);

        let before = resident(&of_half);
        let bytes = make_huge(0);
        assert_eq!((full[MIB], full[MIB + 1], full[40 * MIB - 1]), (7, 1, 1));
        assert_eq!(resident(&of_half), before, "no page came to what is not in use");
        let collapses = KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 1, 0));
        if collapses && setting("enabled").contains("[madvise]") && setting("hpage_pmd_size").trim() == HUGE.to_string()
        {
            assert!(bytes >= 36 * MIB, "{bytes} bytes are in huge pages");
        }
    }

    fn span<T>(bytes: &[T]) -> Range<usize> {
        let range = bytes.as_ptr_range();
        range.start as usize..range.end as usize
    }

    fn resident(addresses: &Range<usize>) -> usize {
        let page = procfs::page_size() as usize;
        (addresses.start.next_multiple_of(page)..addresses.end - page)
            .step_by(page)
            .filter(|page| is_in_use(*page, 1))
            .count()
    }
}
