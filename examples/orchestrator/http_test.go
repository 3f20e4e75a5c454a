package main

import (
	"database/sql"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"testing"

	"github.com/kvmbackup/kvmbackup/metrics"
)

// An instance's health says that the database is gone, and not where it is.
func TestNobodyIsToldOfTheDatabase(t *testing.T) {
	t.Parallel()
	db, err := sql.Open("pgx", "postgres://keeper:pass@/backups?host=/nowhere/pg-socket&connect_timeout=1")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	handler := newHandler(db, metrics.New(), slog.New(slog.DiscardHandler))
	for path, want := range map[string]int{
		"/healthz": http.StatusServiceUnavailable, "/metrics": http.StatusInternalServerError,
	} {
		answer := httptest.NewRecorder()
		handler.ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, nil))
		if answer.Code != want {
			t.Errorf("%s answers %d, want %d", path, answer.Code, want)
		}
		told := regexp.MustCompile("keeper|backups|nowhere|pg-socket|SELECT").FindString(answer.Body.String())
		if told != "" {
			t.Errorf("%s tells %q: %s", path, told, answer.Body)
		}
	}
}
