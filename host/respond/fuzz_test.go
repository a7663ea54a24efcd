package respond

import (
	"encoding/json"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.etcd.io/bbolt"
)

// FuzzJournal puts any bytes where the journal has an order and a result:
// reading them is an error, or gives them back.
func FuzzJournal(f *testing.F) {
	j, err := OpenJournal(filepath.Join(f.TempDir(), "journal.db"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = j.Close() })
	j.db.NoSync = true
	id := uuid.UUID{1}
	order, err := json.Marshal(Order{ID: id, VM: vm1, Kind: Pause, Given: time.Unix(1, 0), Asked: "x"})
	if err != nil {
		f.Fatal(err)
	}
	result, err := json.Marshal(Result{Order: id, Status: Done})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(order, result, []byte(`{"since":"2026-01-02T03:04:05Z","error":"away"}`))
	f.Add(order[:9], result, []byte(nil))
	f.Add([]byte("null"), []byte("[]"), []byte("1"))
	f.Fuzz(func(t *testing.T, order, result, waiting []byte) {
		err := j.db.Update(func(tx *bbolt.Tx) error {
			for bucket, b := range map[string][]byte{string(bOrders): order, string(bResults): result, string(bWaiting): waiting, string(bPending): nil, string(bUntold): nil, string(bIsolated): waiting} {
				if err := tx.Bucket([]byte(bucket)).Put(id[:], b); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		err = j.Entries(func(e Entry) bool {
			n++
			_, merr := json.Marshal(e)
			return merr == nil
		})
		if (err == nil) != (n == 1) {
			t.Errorf("%d entries, %v", n, err)
		}
		e, eerr := j.Entry(id)
		if (eerr == nil) != (err == nil) || (eerr == nil && e.Result == nil) {
			t.Errorf("%+v, %v; %v", e, eerr, err)
		}
		if macs, err := j.AllIsolated(); err == nil && len(macs) > 1 {
			t.Errorf("isolated: %q", macs)
		}
		_, _ = j.Pending()
		_, _ = j.Untold()
	})
}
