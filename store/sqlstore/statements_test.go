package sqlstore

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// stateError is an error with a method of pgx's and lib/pq's.
type stateError string

func (e stateError) Error() string    { return "" }
func (e stateError) SQLState() string { return string(e) }

// codeError is an error with a method of modernc.org/sqlite's.
type codeError int

func (e codeError) Error() string { return "" }
func (e codeError) Code() int     { return int(e) }

func TestRetryable(t *testing.T) {
	own := errors.New("the driver's own")
	s := &Store{cfg: Config{Retryable: func(err error) bool { return errors.Is(err, own) }}}
	for err, want := range map[error]bool{
		stateError("40001"): true,
		stateError("40P01"): true,
		stateError("23505"): false,
		codeError(5):        true, // SQLITE_BUSY
		codeError(6):        true, // SQLITE_LOCKED
		codeError(517):      true, // SQLITE_BUSY_SNAPSHOT
		codeError(19):       false,
		own:                 true,
		errors.New("other"): false,
	} {
		if got := s.retryable(fmt.Errorf("wrapped: %w", err)); got != want {
			t.Errorf("%#v is retryable: %v", err, got)
		}
	}
}

func TestNamesInStatements(t *testing.T) {
	for _, d := range []Dialect{DialectSQLite, DialectPostgreSQL} {
		c, err := Config{Dialect: d}.withDefaults()
		if err != nil {
			t.Fatal(err)
		}
		q := newQueries(c)
		q.each(func(sql string) string {
			if sql == "" || strings.Contains(sql, "{") || d == DialectPostgreSQL && strings.Contains(sql, "?") {
				t.Errorf("%v: a name or a placeholder is missing: %q", d, sql)
			}
			return sql
		})
	}
}
