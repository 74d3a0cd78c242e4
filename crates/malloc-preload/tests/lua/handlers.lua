-- What nginx answers in the test of many requests: for each name and number one text, which the client reckons, too.
-- Between requests workers keep things, and look whether they are as they left them.

local M = {}
local ffi = require("ffi")
local kept, oldest, newest = {}, 1, 0

-- Keeps what belongs to `k`, checks the oldest and drops it, now and then many at once.
local function keep(k)
  newest = newest + 1
  kept[newest] = { k = k, text = ("kept %d "):format(k):rep(k % 30), list = { k, { k } } }
  while newest - oldest > (k % 5000 == 0 and 10 or 3000) do
    local it = kept[oldest]
    assert(it.text == ("kept %d "):format(it.k):rep(it.k % 30) and it.list[2][1] == it.k, "what was kept has changed")
    kept[oldest] = nil
    oldest = oldest + 1
  end
end

local function rows(k)
  local all, sum = {}, 0
  for i = 1, k % 300 do all[i] = { id = i, value = i * k, name = "row " .. i } end
  for _, row in ipairs(all) do sum = sum + row.value end
  return sum
end

function M.tables(k)
  keep(k)
  return rows(k)
end

function M.strings(k)
  local out = {}
  for i = 1, k % 200 do out[i] = k .. "," end
  return table.concat(out)
end

function M.routines(k)
  local sum = 0
  local next = coroutine.wrap(function()
    for i = 1, k % 100 do coroutine.yield(function() return i end) end
  end)
  for _ = 1, k % 100 do sum = sum + next()() end
  return sum
end

-- Other requests are answered while this one holds its rows.
function M.sleep(k)
  local before = rows(k)
  local held = { ("x"):rep(k % 1000), { k } }
  ngx.sleep(k % 3 / 1000)
  assert(#held[1] == k % 1000 and held[2][1] == k, "a local changed while its request waited")
  return before
end

function M.cdata(k)
  local n = k % 500 + 1
  local array = ffi.new("int64_t[?]", n, k)
  if n == 1 then return k end
  for i = 1, n - 1 do array[i] = array[i - 1] + 1 end
  return tonumber(array[n - 1])
end

function M.shared(k)
  local dict = ngx.shared.test
  dict:set("key" .. k % 1000, ("v" .. k % 1000):rep(20))
  local value = assert(dict:get("key" .. k % 1000))
  return #value / 20
end

function M.execute(k)
  keep(k)
  local status = os.execute("exit " .. k % 7)
  return status >= 256 and status / 256 or status
end

function M.popen(k)
  local pipe = assert(io.popen("echo " .. k))
  local said = pipe:read("*l")
  pipe:close()
  return said
end

function M.answer()
  local body = M[ngx.var.arg_what](tonumber(ngx.var.arg_k)) .. "\n"
  ngx.header["Content-Length"] = #body
  ngx.print(body)
end

return M
