package api

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api/apipb"
	"github.com/outguard/outguard/plugins/engine"
)

// Bounds of a model file on its way, bytes, and of what is accepted at a time.
const (
	modelPart      = 32 << 10
	maxModelFile   = engine.MaxCheckpoint
	maxModelPoints = 256
)

func (s *service) ExportModel(ctx context.Context, r *apipb.ExportModelRequest, out *connect.ServerStream[apipb.ExportModelResponse]) error {
	vm, err := s.resolve(ctx, r.Vm)
	if err != nil {
		return err
	}
	return s.stream(ctx, func(ctx context.Context) error {
		file, err := s.backend.ExportModel(ctx, ModelRef{r.Engine, vm, r.Workload})
		if err != nil {
			return err
		}
		for len(file) > 0 {
			part := file[:min(len(file), modelPart)]
			if err := s.send(ctx, func() error { return out.Send(&apipb.ExportModelResponse{Part: part}) }); err != nil {
				return err
			}
			file = file[len(part):]
		}
		return nil
	})
}

// ImportModel takes one file at a time: a file is held in memory until it is
// whole.
func (s *service) ImportModel(ctx context.Context, in *connect.ClientStream[apipb.ImportModelRequest]) (*apipb.ImportModelResponse, error) {
	release, err := s.acquire()
	if err != nil {
		return nil, err
	}
	defer release()
	if !s.importing.TryLock() {
		return nil, Error(connect.CodeResourceExhausted, "try again when it is done", errors.New("another model is being imported"))
	}
	defer s.importing.Unlock()
	var vm string
	var of ModelRef
	var file []byte
	for n := 0; in.Receive(); n++ {
		m := in.Msg()
		if n == 0 {
			vm, of.Engine, of.Workload = m.Vm, m.Engine, m.Workload
		}
		if len(file)+len(m.Part) > maxModelFile {
			return nil, invalid("", "a model file of more than %d bytes", maxModelFile)
		}
		file = append(file, m.Part...)
	}
	if err := in.Err(); err != nil {
		return nil, err
	}
	id, by, err := s.ordered(ctx, "import-model", vm, "")
	if err != nil {
		return nil, err
	}
	of.VM = id
	m, err := s.backend.ImportModel(ctx, of, file, by)
	if err != nil {
		return nil, err
	}
	return &apipb.ImportModelResponse{Model: s.model(ctx, &m)}, nil
}

func (s *service) AcceptModel(ctx context.Context, r *apipb.AcceptModelRequest) (*apipb.AcceptModelResponse, error) {
	points, err := parsePoints(r.Points)
	if err != nil {
		return nil, err
	}
	vm, by, err := s.ordered(ctx, "accept", r.Vm, "")
	if err != nil {
		return nil, err
	}
	m, err := s.backend.AcceptModel(ctx, ModelRef{r.Engine, vm, r.Workload}, points, by)
	if err != nil {
		return nil, err
	}
	return &apipb.AcceptModelResponse{Model: s.model(ctx, &m)}, nil
}

func (s *service) SetModel(ctx context.Context, r *apipb.SetModelRequest) (*apipb.SetModelResponse, error) {
	set, err := settingsOf(r)
	if err != nil {
		return nil, err
	}
	vm, by, err := s.ordered(ctx, "set-model", r.Vm, "")
	if err != nil {
		return nil, err
	}
	m, err := s.backend.SetModel(ctx, ModelRef{r.Engine, vm, r.Workload}, set, by)
	if err != nil {
		return nil, err
	}
	return &apipb.SetModelResponse{Model: s.model(ctx, &m)}, nil
}

func (s *service) JoinModel(ctx context.Context, r *apipb.JoinModelRequest) (*apipb.JoinModelResponse, error) {
	if len(r.Group) > engine.MaxName || strings.ContainsFunc(r.Group, func(c rune) bool { return !unicode.IsPrint(c) }) {
		return nil, invalid("name it as one names a file", "a group's name of %d bytes, or of what cannot be printed; at most %d", len(r.Group), engine.MaxName)
	}
	vm, by, err := s.ordered(ctx, "join-model", r.Vm, "")
	if err != nil {
		return nil, err
	}
	m, err := s.backend.JoinModel(ctx, ModelRef{r.Engine, vm, r.Workload}, r.Group, by)
	if err != nil {
		return nil, err
	}
	return &apipb.JoinModelResponse{Model: s.model(ctx, &m)}, nil
}

func settingsOf(r *apipb.SetModelRequest) (set engine.Settings, err error) {
	for to, text := range map[**[engine.PointSize]byte]string{&set.Base: r.Base, &set.Aggregate: r.Aggregate} {
		if text == "" {
			continue
		}
		v, err := parsePoints([]string{text})
		if err != nil {
			return set, err
		}
		*to = &v[0]
	}
	if len(r.Pseudonyms) > 0 {
		set.Pseudonyms, err = parsePoints(r.Pseudonyms)
	}
	if err == nil && set.Base == nil && set.Aggregate == nil && len(set.Pseudonyms) == 0 {
		err = invalid("", "nothing to set")
	}
	return set, err
}

// parsePoints reads values of 32 bytes as hex.
func parsePoints(text []string) ([][engine.PointSize]byte, error) {
	if len(text) == 0 || len(text) > maxModelPoints {
		return nil, invalid("", "%d values, want 1 to %d", len(text), maxModelPoints)
	}
	points := make([][engine.PointSize]byte, len(text))
	for i, t := range text {
		if len(t) != hex.EncodedLen(engine.PointSize) {
			return nil, invalid("", "%d hex digits, want %d", len(t), hex.EncodedLen(engine.PointSize))
		}
		if _, err := hex.Decode(points[i][:], []byte(t)); err != nil {
			return nil, Error(connect.CodeInvalidArgument, "", fmt.Errorf("hex: %w", err))
		}
	}
	return points, nil
}
