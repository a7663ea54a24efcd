package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"
	"github.com/google/uuid"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/host/evidence"
	"github.com/outguard/outguard/host/failpoint"
)

// keyRotated is the note on the host's own record of a rotation.
const keyRotated = "host-key-rotated"

// RotateKey is for those alone who could do it with the files: there can be only so
// many rotations, and whoever orders VMs about need not be able to use them up.
func (b backend) RotateKey(_ context.Context, by api.Caller) (*apipb.RotateKeyResponse, error) {
	if by.UID != 0 && int64(by.UID) != int64(os.Geteuid()) {
		return nil, api.Error(connect.CodePermissionDenied, "run as root or as the monitor's own user", errors.New("rotate the host's key"))
	}
	r, err := b.m.store.RotateKey(b.m.cfg.StateDir)
	if r.Number == 0 {
		return nil, api.Error(connect.CodeFailedPrecondition, "the key is the one that it was", err)
	}
	if err != nil { // it holds, and the next start comes to the end of it
		b.m.log.Error("the host's key was rotated, and its files are not what they should be yet", "error", err)
	}
	failpoint.At(failpoint.Untold)
	asked := by.String()
	if by.Reason != "" {
		asked = fmt.Sprintf("%s for %q", asked, by.Reason)
	}
	b.m.tellRotation(&r, asked)
	b.m.toldRotations(r.Number)
	return &apipb.RotateKeyResponse{
		Number: r.Number, OldKey: r.Old, NewKey: r.New, Time: api.FormatTime(r.Time), KeysFile: filepath.Join(b.m.cfg.StateDir, evidence.KeysFile),
	}, nil
}

// tellRotation puts a rotation on the host's own record, signed by the new key.
func (m *Monitor) tellRotation(r *evidence.Rotation, by string) {
	m.keep(uuid.Nil, evidence.KindNote, time.Now(), note{
		What: keyRotated, Text: fmt.Sprintf("rotation %d at %s, by %s: %s is followed by %s", r.Number, api.FormatTime(r.Time), by, r.Old, r.New),
	})
	s, err := m.store.Stream(uuid.Nil)
	if err == nil {
		_, err = s.SignHead()
	}
	if err != nil {
		m.log.Error("sign what is on record of the host key's rotation", "error", err)
	}
	m.log.Info("host key rotated", "number", r.Number, "old", r.Old, "new", r.New, "by", by)
}

func (m *Monitor) toldRotations(n uint64) {
	if err := m.state.SaveRotations(n); err != nil {
		m.log.Error("take note that a rotation is on record; it will be there twice", "error", err)
	}
}

// tellRotations puts on record what was rotated while no monitor ran, or by one
// that was killed before it had told.
func (m *Monitor) tellRotations(context.Context) error {
	told, err := m.state.Rotations()
	if err != nil {
		return err
	}
	all, err := evidence.ParseRotations(m.store.Key().Rotations())
	if err != nil {
		return err
	}
	for i := range all {
		if all[i].Number > told {
			m.tellRotation(&all[i], "somebody, while this monitor did not run or before it was killed")
		}
	}
	if n := uint64(len(all)); n > told {
		m.toldRotations(n)
	}
	return nil
}
