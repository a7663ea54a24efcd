package evidence

import "context"

func (s *Store) sealLoop(ctx context.Context) {}

func (w *walk) seal() error { return nil }
