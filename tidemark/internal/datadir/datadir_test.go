package datadir_test

import (
	"os"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/tidemark/tidemark/tidemark/internal/datadir"
)

func TestSecondHolderIsToldWhoHasTheDirectory(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "made", "on", "the", "way")
	first, err := datadir.Acquire(dir)
	require.NoError(t, err)
	_, err = datadir.Acquire(dir)
	require.ErrorIs(t, err, datadir.ErrLocked)
	require.ErrorContains(t, err, strconv.Itoa(os.Getpid()))
	require.NoError(t, first.Release())
	again, err := datadir.Acquire(dir)
	require.NoError(t, err)
	require.NoError(t, again.Release())
}

func TestFacts(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	type fact struct{ Port int }
	got := fact{Port: 1}
	require.NoError(t, datadir.ReadFact(dir, "fact.json", &got))
	require.Equal(t, fact{Port: 1}, got)
	require.NoError(t, datadir.WriteFact(dir, "fact.json", fact{Port: 2}))
	require.NoError(t, datadir.ReadFact(dir, "fact.json", &got))
	require.Equal(t, fact{Port: 2}, got)
	info, err := os.Stat(filepath.Join(dir, "fact.json"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, entries, 1)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "fact.json"), []byte("{"), 0o600))
	require.ErrorContains(t, datadir.ReadFact(dir, "fact.json", &got), "fact.json")
}
