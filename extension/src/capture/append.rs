//! Appends keys to a segment of the log: straight into the heap, many at a time.
//!
//! No SPI and no executor: the writing role needs no right on the log, and a key costs a fraction of what
//! an INSERT would. The rows are WAL-logged and belong to the writing (sub)transaction like its own.

use crate::catalog::bulk::attribute;
use pgrx::{PgMemoryContexts, pg_sys};

/// Keys that are written by one call.
const BATCH: usize = 500;

/// An open segment, and the keys that wait to be written to it.
pub struct Appender {
    segment: pg_sys::Relation,
    /// The numbers of the key's columns in the written table; none where they do not fit.
    key: Vec<i16>,
    /// The last of those numbers: columns behind it are never looked at.
    last: i16,
    /// Whether the segment's columns have the types of the key's. If not, somebody changed the table's.
    fits: bool,
    marked: bool,
    slots: Vec<*mut pg_sys::TupleTableSlot>,
    waiting: usize,
    /// For what a write leaves behind; made when one statement fills more than a batch.
    scratch: Option<PgMemoryContexts>,
}

impl Appender {
    /// Opens the segment for the columns `key` of `table`; None where it was dropped meanwhile.
    ///
    /// The lock (ROW EXCLUSIVE, as INSERT takes it) stays until the end of the transaction: whoever gets a
    /// stronger one knows that nothing uncommitted is in the segment.
    pub fn open(segment: pg_sys::Oid, table: pg_sys::Relation, key: Vec<i16>) -> Option<Self> {
        // SAFETY: an oid from the catalog and an open relation; descriptors live as long as their relations
        // are open, which they are until close().
        unsafe {
            let segment = pg_sys::try_table_open(segment, lock_mode());
            if segment.is_null() {
                return None;
            }
            let fits = fits((*segment).rd_att, (*table).rd_att, &key);
            let key = if fits { key } else { Vec::new() };
            let last = key.iter().copied().max().unwrap_or(0);
            Some(Self { segment, key, last, fits, marked: false, slots: Vec::new(), waiting: 0, scratch: None })
        }
    }

    /// Decodes the key's columns of a row.
    ///
    /// # Safety
    /// `row` is a filled slot of the table's row type.
    #[inline]
    pub unsafe fn decode(&self, row: *mut pg_sys::TupleTableSlot) {
        // SAFETY: the caller's; slot_getsomeattrs() (executor/tuptable.h) has the same condition in front.
        unsafe {
            if (*row).tts_nvalid < self.last {
                pg_sys::slot_getsomeattrs_int(row, i32::from(self.last));
            }
        }
    }

    /// Whether two decoded rows have the same key, byte by byte. Equal values with different images count
    /// as different: one key too many in the log does no harm.
    ///
    /// # Safety
    /// Both slots are filled, of the table's row type, and decoded.
    pub unsafe fn same_key(&self, one: *mut pg_sys::TupleTableSlot, other: *mut pg_sys::TupleTableSlot) -> bool {
        self.key.iter().all(|&number| {
            // SAFETY: the caller's. Attribute numbers of the key lie within the descriptor (see fits()).
            unsafe {
                let column = column(number);
                let nulls = (*(*one).tts_isnull.add(column), *(*other).tts_isnull.add(column));
                if nulls.0 || nulls.1 {
                    return nulls.0 && nulls.1;
                }
                let attribute = attribute((*one).tts_tupleDescriptor, column);
                let (one, other) = (*(*one).tts_values.add(column), *(*other).tts_values.add(column));
                if (*attribute).attbyval {
                    one == other
                } else {
                    stored(one, (*attribute).attlen) == stored(other, (*attribute).attlen)
                }
            }
        })
    }

    /// Appends the key of a row.
    ///
    /// # Safety
    /// `row` is filled, of the table's row type, and decoded.
    #[inline]
    pub unsafe fn key(&mut self, row: *mut pg_sys::TupleTableSlot) {
        if !self.fits {
            // The keys cannot be told in the columns that the log has: whoever reads it must compare all.
            return self.mark();
        }
        // SAFETY: the caller's. An empty slot of the segment's row type has room for each of its columns,
        // of which there are as many as the key has (see fits()).
        unsafe {
            let slot = self.empty_slot();
            for (place, &number) in self.key.iter().enumerate() {
                *(*slot).tts_values.add(place) = *(*row).tts_values.add(column(number));
                *(*slot).tts_isnull.add(place) = *(*row).tts_isnull.add(column(number));
            }
            self.push(slot);
        }
    }

    /// Appends the marker: any row of the table may have changed. Once is enough.
    pub fn mark(&mut self) {
        if self.marked {
            return;
        }
        self.marked = true;
        // SAFETY: see key(); by convention a row whose columns are NULL needs no values.
        unsafe {
            let slot = self.empty_slot();
            let columns = usize::try_from((*(*slot).tts_tupleDescriptor).natts).expect("a table's columns");
            for place in 0..columns {
                *(*slot).tts_isnull.add(place) = true;
            }
            self.push(slot);
        }
    }

    /// Writes what waits and closes the segment; the lock stays.
    pub fn close(mut self) {
        self.write();
        // SAFETY: slots that this structure made; they unpin the descriptor before the relation is closed.
        unsafe {
            for &slot in &self.slots {
                pg_sys::ExecDropSingleTupleTableSlot(slot);
            }
            pg_sys::table_close(self.segment, pg_sys::NoLock as pg_sys::LOCKMODE);
        }
    }

    unsafe fn empty_slot(&mut self) -> *mut pg_sys::TupleTableSlot {
        if self.waiting == self.slots.len() {
            // SAFETY: the segment is open.
            let slot =
                unsafe { pg_sys::MakeSingleTupleTableSlot((*self.segment).rd_att, &raw const pg_sys::TTSOpsHeapTuple) };
            self.slots.push(slot);
        }
        self.slots[self.waiting]
    }

    /// Takes over a slot whose values are set.
    unsafe fn push(&mut self, slot: *mut pg_sys::TupleTableSlot) {
        // SAFETY: the slot is one of ours, empty until now. Materialized, it owns its row: the values of the
        // row that they came from are gone with the next one, above all when its tuplestore is on disk.
        unsafe {
            pg_sys::ExecStoreVirtualTuple(slot);
            pg_sys::ExecMaterializeSlot(slot);
        }
        self.waiting += 1;
        if self.waiting == BATCH {
            // heap_multi_insert() leaves memory behind (the arrays, detoasted keys).
            let mut scratch = self.scratch.take().unwrap_or_else(|| PgMemoryContexts::new("migrator capture"));
            // SAFETY: nothing that is allocated while writing is used afterwards.
            unsafe {
                scratch.switch_to(|_| self.write());
                scratch.reset();
            }
            self.scratch = Some(scratch);
        }
    }

    fn write(&mut self) {
        if self.waiting == 0 {
            return;
        }
        let count = i32::try_from(self.waiting).expect("a batch is small");
        // SAFETY: the first `waiting` slots hold materialized rows of the segment's type.
        unsafe {
            pg_sys::table_multi_insert(
                self.segment,
                self.slots.as_mut_ptr(),
                count,
                pg_sys::GetCurrentCommandId(true),
                0,
                std::ptr::null_mut(),
            );
            for &slot in &self.slots[..self.waiting] {
                pg_sys::ExecClearTuple(slot);
            }
        }
        self.waiting = 0;
    }
}

fn lock_mode() -> pg_sys::LOCKMODE {
    pg_sys::RowExclusiveLock as pg_sys::LOCKMODE
}

/// The place of a column, counted from zero.
#[inline]
fn column(number: i16) -> usize {
    usize::try_from(number - 1).expect("a key's columns are numbered from 1")
}

/// Whether the key's columns exist in the table and have the types of the log's columns, one by one. Their
/// bytes are copied without conversion, so nothing else may be written.
unsafe fn fits(log: pg_sys::TupleDesc, table: pg_sys::TupleDesc, key: &[i16]) -> bool {
    // SAFETY: the caller's descriptors of open relations; numbers are checked against them first.
    unsafe {
        i32::try_from(key.len()) == Ok((*log).natts)
            && key.iter().enumerate().all(|(place, &number)| {
                number >= 1 && i32::from(number) <= (*table).natts && {
                    let (log, table) = (attribute(log, place), attribute(table, column(number)));
                    !(*log).attisdropped && !(*table).attisdropped && (*log).atttypid == (*table).atttypid
                }
            })
    }
}

/// The bytes of a value that is passed by reference, as they are stored (compressed, a pointer to TOAST).
unsafe fn stored<'a>(value: pg_sys::Datum, length: i16) -> &'a [u8] {
    let start = value.cast_mut_ptr::<u8>();
    // SAFETY: the caller's: a value of a decoded row, whose type has this typlen.
    unsafe {
        let length = match length {
            -1 => pgrx::varsize_any(start.cast()),
            -2 => std::ffi::CStr::from_ptr(start.cast()).count_bytes(),
            fixed => usize::try_from(fixed).expect("a fixed length is positive"),
        };
        std::slice::from_raw_parts(start, length)
    }
}
