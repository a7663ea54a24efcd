package api

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
)

// Options of a Server. Zero values mean the defaults.
type Options struct {
	Log            *slog.Logger  // default: discarded
	Metrics        http.Handler  // served at /metrics; default: not served
	MaxConns       int           // default 256; more wait to be accepted
	MaxStreams     int           // default 64; more are refused as resource-exhausted
	MaxRequest     int           // bytes, default 64 KiB
	WriteTimeout   time.Duration // how long a stream's reader may take nothing, default 30 s
	ShutdownPeriod time.Duration // for calls under way when Serve's context ends, default 5 s
}

func (o *Options) withDefaults() Options {
	var out Options
	if o != nil {
		out = *o
	}
	if out.Log == nil {
		out.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&out.MaxConns, 256)
	setDefault(&out.MaxStreams, 64)
	setDefault(&out.MaxRequest, 64<<10)
	setDefault(&out.WriteTimeout, 30*time.Second)
	setDefault(&out.ShutdownPeriod, 5*time.Second)
	return out
}

func setDefault[T int | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// Server answers the API from a Backend.
type Server struct {
	backend Backend
	opts    Options
	streams chan struct{} // holds a token for each stream under way
	names   names
	handler http.Handler

	importing sync.Mutex // held while a model comes in
}

// New returns a server; it starts nothing.
func New(b Backend, opts *Options) *Server {
	s := &Server{backend: b, opts: opts.withDefaults()}
	s.streams = make(chan struct{}, s.opts.MaxStreams)
	s.names.list = b.Names
	mux := http.NewServeMux()
	mux.Handle(apipbconnect.NewOutguardHandler(&service{s},
		connect.WithReadMaxBytes(s.opts.MaxRequest),
		connect.WithCodec(jsonCodec{}),
		connect.WithCompression("gzip", nil, nil), // the other end is on this host
		connect.WithInterceptors(errorInterceptor{s.opts.Log}),
	))
	if s.opts.Metrics != nil {
		mux.Handle("GET /metrics", s.opts.Metrics)
	}
	s.handler = withController(mux)
	return s
}

// Handler is the API over HTTP, for any listener.
func (s *Server) Handler() http.Handler { return s.handler }

// Serve answers on l until ctx ends; then it lets unary calls under way finish,
// ends streams and closes l. It returns nil after an orderly end.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	calls, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	srv := &http.Server{
		Handler:           s.handler,
		Protocols:         protocols(),
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		BaseContext:       func(net.Listener) context.Context { return withStop(calls, ctx) },
		ConnContext:       connContext,
		ErrorLog:          slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(newPeerListener(l, s.opts.MaxConns)) }()
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	return s.shutdown(ctx, srv, cancel, served)
}

func (s *Server) shutdown(ctx context.Context, srv *http.Server, cancelCalls func(), served <-chan error) error {
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.opts.ShutdownPeriod)
	defer cancel()
	err := srv.Shutdown(grace)
	if err != nil {
		cancelCalls()
		err = srv.Close()
	}
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

func protocols() *http.Protocols {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true) // gRPC
	return &p
}
