package api_test

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/outguard/outguard/host/api"
	"github.com/outguard/outguard/host/api/apipb/apipbconnect"
)

// procedures are the calls that answer once, and one that streams.
var procedures = []string{
	apipbconnect.OutguardStatusProcedure, apipbconnect.OutguardListVMsProcedure, apipbconnect.OutguardFindingsProcedure,
	apipbconnect.OutguardEventsProcedure, apipbconnect.OutguardListOrdersProcedure, apipbconnect.OutguardPauseProcedure,
	apipbconnect.OutguardResumeProcedure, apipbconnect.OutguardListModelsProcedure, apipbconnect.OutguardSealModelProcedure,
	apipbconnect.OutguardLearnModelProcedure, apipbconnect.OutguardListBundlesProcedure, apipbconnect.OutguardAcceptModelProcedure,
	apipbconnect.OutguardSetModelProcedure, apipbconnect.OutguardImportModelProcedure, apipbconnect.OutguardExportModelProcedure,
}

// FuzzRequest sends any body to any call, as JSON and as protobuf, unary and
// streamed: it is answered, and where it is unary never with an error of the
// server's own.
func FuzzRequest(f *testing.F) {
	for i := range procedures {
		f.Add(uint8(i), uint8(0), []byte(`{"vm":"web","since":"2026-01-02T03:04:05Z","limit":"3","types":["file_open"],"path":"/etc/*","pid":7}`))
		f.Add(uint8(i), uint8(1), []byte("\x0a\x03web"))
		f.Add(uint8(i), uint8(2), append([]byte{0, 0, 0, 0, 12}, `{"vm":"web"}`...))
		f.Add(uint8(i), uint8(0), []byte(`{"vm":"`+strings.Repeat("x", 300)+`","follow":true`))
	}
	kinds := []string{"application/json", "application/proto", "application/connect+json", "application/grpc"}
	handler := api.New(newBackend(), nil).Handler()
	f.Fuzz(func(t *testing.T, call, kind uint8, body []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond) // one that follows has no end
		defer cancel()
		r := httptest.NewRequestWithContext(ctx, http.MethodPost, procedures[int(call)%len(procedures)], bytes.NewReader(body))
		r.Header.Set("Content-Type", kinds[int(kind)%len(kinds)])
		w := httptest.NewRecorder()
		handler.ServeHTTP(w, r)
		answer, err := io.ReadAll(w.Result().Body)
		if err != nil {
			t.Fatal(err)
		}
		// Of a stream's envelopes connect itself says "internal"; a panic of ours would end the test.
		if unary := int(kind)%len(kinds) < 2; unary && w.Code == http.StatusInternalServerError {
			t.Errorf("%d: %s", w.Code, answer)
		}
	})
}

// FuzzWords reads any text as the words of the API.
func FuzzWords(f *testing.F) {
	f.Add("critical")
	f.Add("2026-01-02T03:04:05.678Z")
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := api.ParseSeverity(s); err == nil && api.SeverityName(v) != s {
			t.Errorf("severity %q is %q", s, api.SeverityName(v))
		}
		if at, err := api.ParseTime(s); err == nil && !at.IsZero() {
			if again, err := api.ParseTime(api.FormatTime(at)); err != nil || !again.Equal(at) {
				t.Errorf("time %q: %v, %v", s, again, err)
			}
		}
	})
}
