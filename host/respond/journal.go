package respond

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"

	"github.com/outguard/outguard/host/bolt"
)

// The journal is a bbolt file: "orders" and "results" hold JSON by order id,
// "pending" the ids without a result, "untold" those whose result may not be on
// the VM's record yet, "waiting" JSON of those that wait for libvirt, "isolated"
// JSON of the MAC addresses that orders took down, by VM, "frozen" of the cgroups
// that they froze, "meta" the version.
var (
	bOrders   = []byte("orders")
	bResults  = []byte("results")
	bPending  = []byte("pending")
	bUntold   = []byte("untold")
	bWaiting  = []byte("waiting")
	bIsolated = []byte("isolated")
	bFrozen   = []byte("frozen")
	bMeta     = []byte("meta")
	kVersion  = []byte("version")
)

const journalVersion = "1"

// Journal keeps orders and results on disk, in the file and in a write-ahead log
// beside it. Each write is synced before it returns. One process holds it at a
// time.
type Journal struct {
	db   *bbolt.DB
	cut  *bolt.Cut
	keep int

	mu       sync.Mutex // one write at a time
	wal      *wal
	torn     error       // why what was in the log is not
	owed     batch       // in the log, and not in db yet
	recorded []uuid.UUID // the orders of which told was called since the last transaction
}

// Cut says that the journal could not be trusted when it was opened, and that
// this one began anew; nil: it was whole.
func (j *Journal) Cut() *bolt.Cut { return j.cut }

// Restore journals what a journal had which could not be trusted, oldest first.
// The orders without a result are then those of an earlier process.
func (j *Journal) Restore(entries []Entry) error {
	var b batch
	for _, e := range entries {
		b.Orders = append(b.Orders, e.Order)
		if e.Result != nil {
			b.Results = append(b.Results, *e.Result)
		}
	}
	if err := errors.Join(j.begin(&b), j.restoreHeld(entries)); err != nil {
		return fmt.Errorf("restore journal: %w", err)
	}
	return nil
}

// DefaultKeep is how many settled orders a journal keeps.
const DefaultKeep = 100_000

// OpenJournal opens or makes the journal at path. One that a crash or the disk
// has left so that it cannot be trusted is set aside: see Cut.
func OpenJournal(path string) (*Journal, error) {
	db, cut, err := bolt.Open(path, walk)
	switch {
	case errors.Is(err, bolt.ErrInUse):
		return nil, fmt.Errorf("open journal %s: another outguardd holds it: %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("open journal: run as the monitor's user: %w", err)
	case err != nil:
		return nil, fmt.Errorf("open journal %s: %w", path, err)
	}
	j := &Journal{db: db, cut: cut, keep: DefaultKeep}
	if err := j.recover(path + "-wal"); err != nil {
		return nil, errors.Join(fmt.Errorf("open journal %s: %w", path, err), db.Close())
	}
	return j, nil
}

// Torn says that the write-ahead log held what is no whole batch, nil: it did not.
// A crash leaves that of one that was being written, which nobody was told is
// there; but a disk may have changed one that was.
func (j *Journal) Torn() error { return j.torn }

// recover puts into the file what a process that was killed had only in the log.
func (j *Journal) recover(path string) (err error) {
	if j.wal, err = openWAL(path); err != nil {
		return err
	}
	if j.owed, j.torn, err = j.wal.read(); err != nil {
		return errors.Join(err, j.wal.close())
	}
	if err := j.commit(); err != nil {
		return errors.Join(err, j.wal.close())
	}
	return nil
}

// walk makes what is missing, and reads all that there is.
func walk(db *bbolt.DB) error {
	if err := db.Update(prepare); err != nil {
		return err
	}
	j := &Journal{db: db}
	if err := j.Entries(func(Entry) bool { return true }); err != nil {
		return err
	}
	_, err1 := j.Pending()
	_, err2 := j.Untold()
	_, err3 := j.AllIsolated()
	return errors.Join(err1, err2, err3)
}

func prepare(tx *bbolt.Tx) error {
	for _, name := range [][]byte{bOrders, bResults, bPending, bUntold, bWaiting, bIsolated, bFrozen, bMeta} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return err
		}
	}
	meta := tx.Bucket(bMeta)
	switch v := meta.Get(kVersion); {
	case v == nil:
		return meta.Put(kVersion, []byte(journalVersion))
	case string(v) != journalVersion:
		return bolt.Foreign(fmt.Errorf("it has version %q, this program knows %s", v, journalVersion))
	}
	return nil
}

// Close closes the files.
func (j *Journal) Close() error { return errors.Join(j.commit(), j.wal.close(), j.db.Close()) }

// update is a transaction. It takes along what db is owed, so that nothing is
// noted about an order before the order.
func (j *Journal) update(fn func(*bbolt.Tx) error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	err := j.db.Update(func(tx *bbolt.Tx) error {
		if err := j.pay(tx); err != nil {
			return err
		}
		return fn(tx)
	})
	if err != nil {
		return err
	}
	if len(j.owed.Orders) > 0 {
		j.wal.clear()
	}
	j.owed, j.recorded = batch{}, j.recorded[:0]
	return nil
}

// pay puts into the file what it is owed, as part of a transaction.
func (j *Journal) pay(tx *bbolt.Tx) error {
	if err := j.put(tx, &j.owed); err != nil {
		return err
	}
	for _, id := range j.recorded {
		if err := tx.Bucket(bUntold).Delete(id[:]); err != nil {
			return err
		}
	}
	return nil
}

// view reads orders, those that the file is owed as well.
func (j *Journal) view(fn func(*bbolt.Tx) error) error {
	if j.commit() == nil {
		return j.db.View(fn)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	tx, err := j.db.Begin(true) // the disk takes nothing: it is put there in memory
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if err := j.pay(tx); err != nil {
		return err
	}
	return fn(tx)
}

// commit puts into the file what it is owed. On an error it stays owed, and is
// not lost: the next transaction takes it along, or the next process's first.
func (j *Journal) commit() error {
	j.mu.Lock()
	owed := len(j.owed.Orders) + len(j.recorded)
	j.mu.Unlock()
	if owed == 0 {
		return nil
	}
	return j.update(func(*bbolt.Tx) error { return nil })
}

// begin journals a batch, all or none.
func (j *Journal) begin(b *batch) error {
	return j.update(func(tx *bbolt.Tx) error { return j.put(tx, b) })
}

// errTaken: the write-ahead log holds another batch.
var errTaken = errors.New("the write-ahead log is taken")

// ahead has a batch on disk in less than half of the time that begin takes, in the
// write-ahead log. The file is owed it then: the next transaction takes it along.
// On an error it is nowhere, and begin is to be called.
func (j *Journal) ahead(b *batch) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if len(j.owed.Orders) > 0 {
		return errTaken
	}
	if err := j.wal.write(b); err != nil {
		return err
	}
	j.owed = *b
	return nil
}

// put journals a batch, but for what is there already.
func (j *Journal) put(tx *bbolt.Tx, b *batch) error {
	for i := range b.Orders {
		id := b.Orders[i].ID[:]
		if tx.Bucket(bOrders).Get(id) != nil {
			continue
		}
		text, err := json.Marshal(&b.Orders[i])
		if err != nil {
			return err
		}
		if err := tx.Bucket(bOrders).Put(id, text); err != nil {
			return err
		}
		if err := tx.Bucket(bPending).Put(id, nil); err != nil {
			return err
		}
	}
	for i := range b.Results {
		if tx.Bucket(bResults).Get(b.Results[i].Order[:]) != nil {
			continue
		}
		if err := j.settle(tx, &b.Results[i]); err != nil {
			return err
		}
	}
	return nil
}

// end journals a result. The first result of an order stands.
func (j *Journal) end(r *Result) error {
	return j.update(func(tx *bbolt.Tx) error { return j.settle(tx, r) })
}

func (j *Journal) settle(tx *bbolt.Tx, r *Result) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	id := r.Order[:]
	if tx.Bucket(bOrders).Get(id) == nil {
		return ErrNoOrder
	}
	if tx.Bucket(bResults).Get(id) != nil {
		return errors.New("the order has a result")
	}
	if err := tx.Bucket(bResults).Put(id, b); err != nil {
		return err
	}
	if err := tx.Bucket(bPending).Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bWaiting).Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bUntold).Put(id, nil); err != nil {
		return err
	}
	return j.prune(tx)
}

// wait notes that an order waits; since when, the first note says.
func (j *Journal) wait(order uuid.UUID, w Waiting) error {
	return j.update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket(bWaiting)
		var before Waiting
		if b := bucket.Get(order[:]); b != nil && json.Unmarshal(b, &before) == nil {
			w.Since = before.Since
		}
		b, err := json.Marshal(w)
		if err != nil {
			return err
		}
		return bucket.Put(order[:], b)
	})
}

// told says that the results of these orders are on the VM's record. That is not
// worth a sync: it is noted with the next transaction, and where a crash comes
// first they are put there again, which the recorder passes over.
func (j *Journal) told(ids ...uuid.UUID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.recorded = append(j.recorded, ids...)
}

// Untold returns the orders whose result may not be on the VM's record: a
// process that was killed had journaled it and nothing more. Oldest first.
func (j *Journal) Untold() ([]Entry, error) {
	var out []Entry
	err := j.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bUntold).ForEach(func(id, _ []byte) error {
			e, err := entry(tx, id)
			if errors.Is(err, ErrNoOrder) {
				return nil // let go of since
			}
			out = append(out, e)
			return err
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return out, nil
}

// prune lets go of the oldest settled order when there are too many. Ids are
// sequenced by time, so few are looked at.
func (j *Journal) prune(tx *bbolt.Tx) error {
	results := tx.Bucket(bResults)
	n := results.Sequence() // counts results kept
	if err := results.SetSequence(n + 1); err != nil {
		return err
	}
	if n+1 <= uint64(j.keep) {
		return nil
	}
	oldest, _ := results.Cursor().First()
	if oldest == nil {
		return nil
	}
	id := append([]byte(nil), oldest...)
	if err := tx.Bucket(bOrders).Delete(id); err != nil {
		return err
	}
	if err := results.Delete(id); err != nil {
		return err
	}
	if err := tx.Bucket(bUntold).Delete(id); err != nil {
		return err
	}
	return results.SetSequence(n)
}

// Pending returns the orders without a result, oldest first.
func (j *Journal) Pending() ([]Order, error) {
	var out []Order
	err := j.view(func(tx *bbolt.Tx) error {
		return tx.Bucket(bPending).ForEach(func(id, _ []byte) error {
			var o Order
			if err := json.Unmarshal(tx.Bucket(bOrders).Get(id), &o); err != nil {
				return fmt.Errorf("order %x: %w", id, err)
			}
			out = append(out, o)
			return nil
		})
	})
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	return out, nil
}

// Entry returns one order with its result.
func (j *Journal) Entry(id uuid.UUID) (Entry, error) {
	var e Entry
	err := j.view(func(tx *bbolt.Tx) (err error) {
		e, err = entry(tx, id[:])
		return err
	})
	if err != nil {
		return Entry{}, fmt.Errorf("order %s: %w", id, err)
	}
	return e, nil
}

// Entries calls fn for each order, newest first, until it returns false. fn
// must not call the journal.
func (j *Journal) Entries(fn func(Entry) bool) error {
	err := j.view(func(tx *bbolt.Tx) error {
		c := tx.Bucket(bOrders).Cursor()
		for id, _ := c.Last(); id != nil; id, _ = c.Prev() {
			e, err := entry(tx, id)
			if err != nil {
				return err
			}
			if !fn(e) {
				return nil
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read journal: %w", err)
	}
	return nil
}

func entry(tx *bbolt.Tx, id []byte) (Entry, error) {
	b := tx.Bucket(bOrders).Get(id)
	if b == nil {
		return Entry{}, ErrNoOrder
	}
	var e Entry
	if err := json.Unmarshal(b, &e.Order); err != nil {
		return Entry{}, err
	}
	if b = tx.Bucket(bResults).Get(id); b != nil {
		e.Result = &Result{}
		if err := json.Unmarshal(b, e.Result); err != nil {
			return Entry{}, err
		}
	}
	if b = tx.Bucket(bWaiting).Get(id); b != nil {
		e.Waiting = &Waiting{}
		if err := json.Unmarshal(b, e.Waiting); err != nil {
			return Entry{}, err
		}
	}
	return e, nil
}
