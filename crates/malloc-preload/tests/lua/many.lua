-- One of very many states: a little of everything, soon over.
--
--   many.lua THREAD RUN

local thread, run = ...
local u = newproxy(true)
getmetatable(u).__gc = function() note(1) end
local t = {}
for i = 1, 200 + thread * 10 do t[i] = { ("%d.%d"):format(run, i), function() return i end } end
local c = coroutine.wrap(function() for _, p in ipairs(t) do coroutine.yield(p[1] .. p[2]()) end end)
local said = {}
for i = 1, #t do said[i] = c() end
return table.concat(said, " ")
